//! SVG plots.

pub mod curves;
pub mod heatmap;
pub mod histogram;

use plotters::style::RGBColor;

/// Colours that stay apart for colour-blind readers (Okabe and Ito).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];

fn color(i: usize) -> RGBColor {
    COLORS[i % COLORS.len()]
}

/// A plot that could not be drawn.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("plot: {error}")
}
