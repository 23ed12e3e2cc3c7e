//! TLS, with certificates that are read again when they change, and clients' certificates where they are asked for.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// Where everything is, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    /// The server's chain, its own certificate first.
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Who may sign clients' certificates; without it clients need none.
    pub(crate) client_ca: Option<PathBuf>,
}

/// What connections are encrypted with.
pub(crate) struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// What it was made of.
    bytes: Vec<Vec<u8>>,
}

impl Tls {
    pub(crate) fn load(files: TlsFiles) -> anyhow::Result<Self> {
        let current = RwLock::new(Current::of(files.bytes()?)?);
        Ok(Self { files, current })
    }

    /// Reads the files again; whether anything in them is new. Files that cannot be used leave everything as it was.
    pub(crate) fn reload(&self) -> anyhow::Result<bool> {
        let bytes = self.files.bytes()?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).bytes == bytes {
            return Ok(false);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::of(bytes)?;
        Ok(true)
    }

    /// For a connection that comes now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone().into()
    }
}

impl TlsFiles {
    fn bytes(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
        [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()]
            .into_iter()
            .flatten()
            .map(|p| read(p))
            .collect()
    }
}

impl Current {
    /// Of certificate chain, key and perhaps the clients' authorities.
    fn of(bytes: Vec<Vec<u8>>) -> anyhow::Result<Self> {
        let chain = certificates(&bytes[0]).context("the server's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&bytes[1]).context("the server's private key")?;
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = match bytes.get(2) {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(authorities).context("the clients' authorities")? {
                    roots.add(authority)?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: config.into(), bytes })
    }
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    anyhow::ensure!(!all.is_empty(), "no certificate in it");
    Ok(all)
}
