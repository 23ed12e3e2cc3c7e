//! Copies of a model, or its parts, that are kept on CPUs of their own.

use qrm_tests::{Rng, Server, fixture};

/// The first and the last CPU that these tests may use.
fn ends() -> (String, String) {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a list").trim();
    let mut numbers = list.split([',', '-']).map(str::to_owned);
    let first = numbers.next().expect("a CPU");
    let last = numbers.next_back().unwrap_or_else(|| first.clone());
    (first, last)
}

#[test]
fn copies_and_parts_stay_on_their_cpus() {
    let model = fixture("qwen3");
    let request = Rng::new(11).request(24);
    let rewards = |server: &Server| server.client().rewards(&request).ok()["data"].clone();
    let truth = rewards(&Server::start(&model, &[]));
    let (first, last) = ends();
    let device = format!("cpu:{first},cpu:{last}");
    for (more, prefix) in [(&[][..], "compute"), (&["--split-layers"], "layers")] {
        let server = Server::start(&model, &[&["--device", device.as_str()], more].concat());
        assert_eq!(rewards(&server), truth, "{more:?}");
        let threads = server.threads();
        for (i, cpu) in [&first, &last].into_iter().enumerate() {
            let own: Vec<_> =
                threads.iter().filter(|(name, _)| name.starts_with(&format!("{prefix}-{i}-"))).collect();
            assert!(!own.is_empty() && own.iter().all(|(_, cpus)| cpus == cpu), "{prefix} {i}: {threads:?}");
        }
        let info = server.client().get("/info").ok();
        assert_eq!(info["device"], device.as_str(), "{info}");
    }
}
