#!/bin/sh
# The steps of the image that are more than a line, for the Dockerfile and for machines without Docker (check.sh); from the root of
# the repository:
#   steps.sh tools               what the other steps need, into CARGO_INSTALL_ROOT
#   steps.sh install BINARY DIR  the binary, built with FEATURES, and what belongs to it, under DIR as in the image
set -eu
case ${1:-} in
  tools)
    # Nothing comes from the distribution: the C in some crates (onig, zstd, ring, mimalloc) is built with gcc and libc6-dev, which
    # the Rust image has.
    cargo install --locked cargo-chef@0.1.78 cargo-cyclonedx@0.5.9
    ;;
  install)
    binary=$2 root=$3
    install -D "$binary" "$root/usr/local/bin/qrm-server"
    # Line tables are most of it. Backtraces keep the names of functions, panics their lines.
    strip --strip-debug "$root/usr/local/bin/qrm-server"
    # Where hub checkpoints are kept.
    mkdir -p "$root/models"
    doc=$root/usr/share/doc/qrm-server
    install -D -m 644 -t "$doc" LICENSE-APACHE LICENSE-MIT
    # The bill of materials: every crate with its version, hash and licence. Scanners of images look for *.cdx.json. The tool
    # writes one beside every manifest of the workspace, so that the others have to go.
    cargo cyclonedx --manifest-path server/Cargo.toml --format json --spec-version 1.5 --describe binaries \
      --features "${FEATURES:-}"
    install -m 644 server/qrm-server_bin.cdx.json "$doc/qrm-server.cdx.json"
    rm -f ./*/*_bin.cdx.json
    ;;
  *)
    echo "usage: $0 tools | install BINARY DIR" >&2
    exit 2
    ;;
esac
