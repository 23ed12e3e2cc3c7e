//! Tokens in the colour of their reward: the same answer as several models judge it.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use qrm_model::reward::Stats;

use super::failed;

/// One answer as one model judges it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Of the model.
    pub name: String,
    /// `[T]`.
    pub tokens: Vec<String>,
    /// `[T]`.
    pub rewards: Vec<f32>,
}

/// Width of the names, of a token's character, of its margin; height of a line.
const NAMES: i32 = 150;
const CHARACTER: i32 = 8;
const MARGIN: i32 = 8;
const LINE: i32 = 24;

/// One line for each row; from a row's mean on, red is worse and blue is better, full at two standard deviations.
pub fn draw(to: &Path, title: &str, rows: &[Row]) -> anyhow::Result<()> {
    let width_of = |token: &str| shown(token).chars().count() as i32 * CHARACTER + MARGIN;
    let widest = rows.iter().map(|r| r.tokens.iter().map(|t| width_of(t)).sum::<i32>()).max().unwrap_or(0);
    let size = ((NAMES + widest + 20) as u32, (rows.len() as i32 * LINE + 50) as u32);
    let root = SVGBackend::new(to, size).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    let text = |size: i32| ("monospace", size).into_font().color(&BLACK);
    root.draw(&Text::new(title.to_owned(), (10, 8), ("sans-serif", 16))).map_err(failed)?;
    for (i, row) in rows.iter().enumerate() {
        let y = 36 + i as i32 * LINE;
        root.draw(&Text::new(row.name.clone(), (10, y + 4), ("sans-serif", 13))).map_err(failed)?;
        let Stats { mean, std, .. } = Stats::of(row.rewards.iter());
        let mut x = NAMES;
        for (token, reward) in row.tokens.iter().zip(&row.rewards) {
            let width = width_of(token);
            let strength = ((f64::from(*reward) - mean) / (2.0 * std.max(1e-9))).clamp(-1.0, 1.0);
            let fill = if strength < 0.0 { RGBColor(213, 94, 0) } else { RGBColor(0, 114, 178) };
            let cell = Rectangle::new([(x, y), (x + width, y + LINE - 3)], fill.mix(strength.abs()).filled());
            root.draw(&cell).map_err(failed)?;
            let style = text(13).pos(Pos::new(HPos::Center, VPos::Center));
            root.draw(&Text::new(shown(token), (x + width / 2, y + (LINE - 3) / 2), style))
                .map_err(failed)?;
            x += width;
        }
    }
    root.present().map_err(failed)
}

/// A token with its white space to be seen.
fn shown(token: &str) -> String {
    token.replace(' ', "·").replace('\n', "⏎")
}
