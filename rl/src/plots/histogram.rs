//! How numbers are spread, several sets above one another.

use std::path::Path;

use plotters::prelude::*;

use super::{color, failed};

/// Bars of a set.
const BINS: usize = 60;

/// The shares of each set's numbers, between the 0.5 % and 99.5 % quantiles of them all.
pub fn draw(to: &Path, title: &str, x: &str, sets: &[(String, Vec<f32>)]) -> anyhow::Result<()> {
    let mut all: Vec<f32> = sets.iter().flat_map(|(_, values)| values.iter().copied()).collect();
    all.sort_by(f32::total_cmp);
    let quantile = |q: f64| all.get(((all.len() as f64 * q) as usize).min(all.len().saturating_sub(1)));
    let (Some(low), Some(high)) = (quantile(0.005), quantile(0.995)) else {
        anyhow::bail!("nothing to draw in {title}")
    };
    let (low, width) = (f64::from(*low), (f64::from(*high) - f64::from(*low)).max(1e-6) / BINS as f64);
    let shares = |values: &[f32]| {
        let mut bins = vec![0.0; BINS];
        for value in values {
            let bin = ((f64::from(*value) - low) / width).clamp(0.0, (BINS - 1) as f64) as usize;
            bins[bin] += 1.0 / values.len().max(1) as f64;
        }
        bins
    };
    let sets: Vec<(&String, Vec<f64>)> = sets.iter().map(|(name, values)| (name, shares(values))).collect();
    let most = sets.iter().flat_map(|(_, bins)| bins).copied().fold(1e-6, f64::max);

    let root = SVGBackend::new(to, (900, 360)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(low..low + width * BINS as f64, 0.0..most * 1.05)
        .map_err(failed)?;
    chart.configure_mesh().disable_mesh().x_desc(x).y_desc("share").draw().map_err(failed)?;
    for (i, (name, bins)) in sets.iter().enumerate() {
        let color = color(i);
        let edges = bins.iter().enumerate().flat_map(|(b, share)| {
            let left = low + width * b as f64;
            [(left, *share), (left + width, *share)]
        });
        chart
            .draw_series(AreaSeries::new(edges, 0.0, color.mix(0.25)).border_style(color))
            .map_err(failed)?
            .label(name.as_str())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.mix(0.6).filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)?;
    root.present().map_err(failed)
}
