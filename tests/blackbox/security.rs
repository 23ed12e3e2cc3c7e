//! Who may ask, and over what.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use qrm_tests::{Rng, Server, fixture, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

pub(crate) type Issuer = CertifiedIssuer<'static, KeyPair>;

#[test]
fn keys_change_while_the_server_runs() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "alice one\nbob two").expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let server = Server::start(&fixture("qwen2"), &["--api-key-file", path]);
    let body = Rng::new(1).request(1);
    let ask = |key: &str| server.client().with_key(key).rewards(&body).status;
    assert_eq!([ask("one"), ask("two"), ask("three"), ask("alice")], [200, 200, 401, 401]);
    std::fs::write(file.path(), "alice one\ncarol three").expect("written");
    until("the new key opens", || ask("three") == 200);
    assert_eq!([ask("one"), ask("two")], [200, 401]);
    // A file that cannot be used takes nobody's key away, and opens to nobody.
    std::fs::write(file.path(), "# all gone").expect("written");
    let complained = || server.log().iter().any(|entry| entry["level"] == "ERROR");
    until("the operator is told", complained);
    assert_eq!([ask("one"), ask("three"), ask("")], [200, 200, 401]);
    let metrics = server.client().with_key("one").get("/metrics").ok();
    let metrics = metrics.as_str().expect("text");
    for name in ["alice", "bob", "carol"] {
        assert!(
            metrics.contains(&format!("key=\"{name}\",model=\"qwen2\",route=\"/v1/rewards\"")),
            "{metrics}"
        );
    }
    // No secret is in the log.
    let log = format!("{:?}", server.log());
    assert!(!log.contains("three") && !log.contains("two"), "{log}");
}

#[test]
fn what_clients_write_stays_out_of_the_log() {
    let server = Server::start(&fixture("qwen2"), &["--max-queue-tokens", "600"]);
    let client = server.client();
    let secret = "xylophone-7";
    let input = |field: &str, value: serde_json::Value| {
        let mut input = serde_json::json!({"prompt": secret, "response": secret, "id": secret});
        input[field] = value;
        serde_json::json!({"inputs": [input]})
    };
    client.rewards(&input("id", secret.into())).ok();
    client.rewards(&input("spans", serde_json::json!([[0, 99]]))).refused(422);
    client.rewards(&input("response", secret.repeat(99).into())).refused(422);
    client.rewards(&input(secret, secret.into())).refused(422);
    client.rewards(&serde_json::json!({"model": secret, "inputs": []})).refused(404);
    client.post("/get_reward", &serde_json::json!({"query": [secret], "prompts": ["y"]})).refused(422);
    client
        .send("POST", "/v1/rewards", &[("content-type", "application/json")], secret.as_bytes())
        .refused(400);
    client.get(&format!("/{secret}")).refused(404);
    let log = format!("{:?}", server.log());
    assert!(log.contains("/v1/rewards") && !log.contains("xylophone"), "{log}");
}

#[test]
fn other_pages_scripts_are_let_in_by_name_only() {
    let closed = Server::start(&fixture("qwen2"), &[]);
    let open = Server::start(&fixture("qwen2"), &["--cors-origin", "https://lab.example"]);
    let ask = |server: &Server, origin: &str| {
        let mut stream = TcpStream::connect(server.address()).expect("connects");
        let head = format!(
            "OPTIONS /v1/rewards HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n\
             connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.to_lowercase().contains(&format!("access-control-allow-origin: {origin}"))
    };
    assert!(ask(&open, "https://lab.example"));
    assert!(!ask(&open, "https://elsewhere.example"));
    assert!(!ask(&closed, "https://lab.example"));
}

pub(crate) fn authority() -> Issuer {
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// A certificate for `localhost`, and its key.
fn signed(by: &Issuer) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    (params.signed_by(&key, by).expect("signed"), key)
}

/// `key.pem` and `cert.pem` of a server.
pub(crate) fn write(dir: &Path, by: &Issuer) {
    let (cert, key) = signed(by);
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).expect("written");
    std::fs::write(dir.join("cert.pem"), cert.pem()).expect("written");
}

/// `GET /health` of a client that trusts `authority`, perhaps with a certificate of its own.
fn health(
    address: &str,
    authority: &Issuer,
    own: Option<(rcgen::Certificate, KeyPair)>,
) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).expect("a certificate");
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder =
        builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
            builder.with_client_auth_cert(chain, key).expect("a client")
        }
    };
    let name = "localhost".try_into().expect("a name");
    let connection = ClientConnection::new(config.into(), name).expect("a connection");
    let mut stream = StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    // An end without TLS's own goodbye is none of ours.
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..n]);
    }
    match answer.is_empty() {
        true => Err(std::io::ErrorKind::ConnectionReset.into()),
        false => Ok(String::from_utf8_lossy(&answer).into_owned()),
    }
}

#[test]
fn tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, clients, others) = (authority(), authority(), authority());
    write(dir.path(), &ours);
    std::fs::write(dir.path().join("ca.pem"), clients.pem()).expect("written");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let flags = ["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")];
    let server = Server::start(&fixture("qwen2"), &flags);
    let is_ok = |answer: std::io::Result<String>| answer.is_ok_and(|text| text.starts_with("HTTP/1.1 200"));
    assert!(is_ok(health(server.address(), &ours, None)));
    assert!(!is_ok(health(server.address(), &others, None)), "a server that nobody trusts");
    // Plain text is no TLS; a connection that says nothing holds nobody up.
    let mut plain = TcpStream::connect(server.address()).expect("connects");
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let _silent = TcpStream::connect(server.address()).expect("connects");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // A new certificate is used when it is there.
    write(dir.path(), &others);
    until("the new certificate is used", || is_ok(health(server.address(), &others, None)));
    // Half of one changes nothing.
    std::fs::write(dir.path().join("key.pem"), "no key").expect("written");
    until("the operator is told", || server.log().iter().any(|entry| entry["level"] == "ERROR"));
    assert!(is_ok(health(server.address(), &others, None)));

    write(dir.path(), &ours);
    let ca = path("ca.pem");
    let server = Server::start(&fixture("qwen2"), &[&flags[..], &["--tls-client-ca", &ca]].concat());
    for address in [server.address(), server.grpc()] {
        assert!(health(address, &ours, None).is_err(), "a client without a certificate");
        assert!(health(address, &ours, Some(signed(&others))).is_err(), "somebody else's certificate");
    }
    assert!(is_ok(health(server.address(), &ours, Some(signed(&clients)))));
    server.assert_quiet();
    // Nobody who has not even said hello keeps it from ending.
    let mut server = server;
    let _silent = [server.address(), server.grpc()].map(|at| TcpStream::connect(at).expect("connects"));
    std::thread::sleep(Duration::from_millis(200));
    server.terminate();
    assert!(server.wait(Duration::from_secs(10)).success());
}
