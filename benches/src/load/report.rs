//! What came of it.

use super::work::Shape;

/// One request's end.
pub(super) struct Outcome {
    /// None: no answer came.
    pub(super) status: Option<u16>,
    pub(super) tokens: usize,
    /// Seconds.
    pub(super) latency: f64,
    /// Seconds from the start of the run.
    pub(super) done: f64,
}

/// The server's counters at a moment.
pub(super) struct Snapshot {
    batches: f64,
    batch_tokens: f64,
    fill: f64,
    shared: f64,
    hits: f64,
    joined: f64,
}

impl Snapshot {
    /// Of the text of `/metrics`.
    pub(super) fn of(text: &str) -> Self {
        // One that an older server does not have is 0.
        let metric = |name: &str| {
            text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0)
        };
        Self {
            batches: metric("qrm_batch_tokens_count"),
            batch_tokens: metric("qrm_batch_tokens_sum"),
            fill: metric("qrm_batch_fill_sum"),
            shared: metric("qrm_shared_tokens_total"),
            hits: metric("qrm_prefix_cache_hit_tokens_total"),
            joined: metric("qrm_joined_tokens_total"),
        }
    }
}

pub(super) fn print(
    shapes: &[Shape],
    outcomes: &[Vec<Outcome>],
    seconds: f64,
    before: &Snapshot,
    after: &Snapshot,
) {
    // Clients are compared by what each got while it had work; of one large request nothing is known before its end.
    let last = |o: &Vec<Outcome>| o.iter().map(|o| o.done).fold(0.0, f64::max);
    let mut rates = Vec::new();
    for (shape, outcomes) in shapes.iter().zip(outcomes) {
        let ok: Vec<&Outcome> = outcomes.iter().filter(|o| o.status == Some(200)).collect();
        let refused = outcomes.iter().filter(|o| matches!(o.status, Some(429 | 503))).count();
        let mut latencies: Vec<f64> = ok.iter().map(|o| o.latency).collect();
        latencies.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            latencies
                .get((latencies.len().saturating_sub(1) as f64 * q) as usize)
                .map_or(f64::NAN, |s| s * 1e3)
        };
        let tokens = ok.iter().map(|o| o.tokens).sum::<usize>() as f64;
        rates.push(tokens / last(outcomes).max(1e-9));
        println!(
            "{shape:?}: {} answered, {refused} refused, {} failed, {:.0} tokens/s, latency ms p50 {:.1} p95 {:.1} p99 {:.1}",
            ok.len(),
            outcomes.len() - ok.len() - refused,
            tokens / seconds,
            quantile(0.5),
            quantile(0.95),
            quantile(0.99),
        );
    }
    let batches = after.batches - before.batches;
    let mean = |sum: f64| sum / batches.max(1.0);
    print!(
        "{seconds:.2} s, {batches:.0} batches of {:.0} computed tokens, filled to {:.2}",
        mean(after.batch_tokens - before.batch_tokens),
        mean(after.fill - before.fill),
    );
    print!(
        ", {:.0} tokens shared, {:.0} of them from the prefix cache, {:.0} joined",
        after.shared - before.shared,
        after.hits - before.hits,
        after.joined - before.joined
    );
    if rates.len() > 1 {
        // Jain, Chiu and Hawe, 1984: 1 = equal shares, 1/n = one has all.
        let squares: f64 = rates.iter().map(|r| r * r).sum();
        print!(", fairness {:.3}", rates.iter().sum::<f64>().powi(2) / (rates.len() as f64 * squares));
    }
    println!();
}
