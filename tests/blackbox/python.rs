//! The Python package, by its own tests.

use std::path::Path;
use std::process::Command;

use qrm_tests::server::binary;

/// Where its virtual environment cannot be made (no Python 3.11, no registry) there is nothing to run it with, unless
/// `QRM_TEST_PYTHON` says that there has to be.
#[test]
fn the_package() {
    let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python/tests/run");
    let prepared = Command::new(&run).arg("prepare").output();
    if !prepared.as_ref().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("QRM_TEST_PYTHON").is_none(), "{prepared:?}");
        eprintln!("no virtual environment: the Python package is not tested: {prepared:?}");
        return;
    }
    let output = Command::new(&run).env("QRM_SERVER", binary()).output().expect("bash runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
