//! Lines with bands over seeds.

use std::path::Path;

use plotters::prelude::*;

use super::{color, failed};
use crate::signal::spread;

/// One line: `(x, what each seed had there)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// In the legend.
    pub name: String,
    /// In ascending order of x.
    pub points: Vec<(f64, Vec<f32>)>,
}

/// What the axes say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axes<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below it.
    pub x: &'a str,
    /// Beside it.
    pub y: &'a str,
    /// x has the distance of its logarithm.
    pub log_x: bool,
}

/// Means as lines, one standard deviation over seeds as bands.
pub fn draw(to: &Path, axes: Axes<'_>, lines: &[Line]) -> anyhow::Result<()> {
    let at = |x: f64| if axes.log_x { x.max(1.0).log2() } else { x };
    let of = |line: &Line| -> Vec<(f64, f64, f64)> {
        let point = |(x, seeds): &(f64, Vec<f32>)| {
            let (mean, std) = spread(seeds);
            (at(*x), mean, std)
        };
        line.points.iter().map(point).collect()
    };
    let all: Vec<Vec<(f64, f64, f64)>> = lines.iter().map(of).collect();
    let points = || all.iter().flatten();
    let x_max = points().map(|p| p.0).fold(f64::MIN_POSITIVE, f64::max);
    let low = points().map(|p| p.1 - p.2).fold(f64::INFINITY, f64::min).min(1.0);
    let high = points().map(|p| p.1 + p.2).fold(0.0, f64::max);
    let margin = 0.05 * (high - low).max(1e-3);

    let root = SVGBackend::new(to, (1000, 480)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let (plot, legend) = root.split_horizontally(760);
    let mut chart = ChartBuilder::on(&plot)
        .caption(axes.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..x_max, low - margin..high + margin)
        .map_err(failed)?;
    let label = |x: &f64| if axes.log_x { format!("{:.0}", x.exp2()) } else { format!("{x:.0}") };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(all.iter().map(Vec::len).max().unwrap_or(0))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&label)
        .draw()
        .map_err(failed)?;
    for (i, (line, points)) in lines.iter().zip(&all).enumerate() {
        let color = color(i);
        let upper = points.iter().map(|(x, mean, std)| (*x, mean + std));
        let lower = points.iter().rev().map(|(x, mean, std)| (*x, mean - std));
        let band = Polygon::new(upper.chain(lower).collect::<Vec<_>>(), color.mix(0.15));
        chart.draw_series([band]).map_err(failed)?;
        let means = points.iter().map(|(x, mean, _)| (*x, *mean));
        chart.draw_series(LineSeries::new(means, color.stroke_width(2))).map_err(failed)?;
        let y = 48 + 24 * i as i32;
        legend.draw(&PathElement::new([(0, y + 7), (20, y + 7)], color.stroke_width(3))).map_err(failed)?;
        legend.draw(&Text::new(line.name.clone(), (28, y), ("sans-serif", 13))).map_err(failed)?;
    }
    root.present().map_err(failed)
}
