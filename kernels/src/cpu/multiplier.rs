//! Rows times a weight's panels, tile by tile, whatever the weight is held in.

use std::ops::Range;

use super::integer::{self, CodeLine, Codes, Integers};
use super::isa::Isa;
use super::tile::{self, Line, Tile, WIDTH};
use crate::panels::Panels;

/// Rows `[n, k]` as a weight is multiplied by them. Made once for all of a weight's panels.
pub(crate) enum Rows<'a> {
    Floats(&'a [f32]),
    Codes(Codes, Integers<'a>),
}

impl<'a> Rows<'a> {
    pub(crate) fn new(x: &'a [f32], weight: &'a Panels) -> Self {
        match weight.integers() {
            None => Self::Floats(x),
            Some(weight) => Self::Codes(Codes::of(x, weight), weight),
        }
    }
}

/// One thread's view of a multiply: some panels at a time, ready for the tiles.
pub(crate) struct Multiplier<'a> {
    isa: Isa,
    rows: &'a Rows<'a>,
    weight: &'a Panels,
    /// Panels that are ready.
    ready: Range<usize>,
    /// They as floats or as codes, if they are not held so.
    floats: Vec<Line>,
    codes: Vec<CodeLine>,
}

impl<'a> Multiplier<'a> {
    pub(crate) fn new(rows: &'a Rows<'a>, weight: &'a Panels) -> Self {
        Self { isa: Isa::detect(), rows, weight, ready: 0..0, floats: Vec::new(), codes: Vec::new() }
    }

    /// Makes `panels` ready, and only these.
    pub(crate) fn load(&mut self, panels: Range<usize>) {
        if self.ready == panels {
            return;
        }
        match self.rows {
            Rows::Floats(_) if self.weight.lines().is_some() => {}
            Rows::Floats(_) => self.weight.widen(panels.clone(), &mut self.floats),
            Rows::Codes(_, Integers::Int8(weight)) => weight.pairs(panels.clone(), &mut self.codes),
            Rows::Codes(_, Integers::Int16(_)) => {}
        }
        self.ready = panels;
    }

    /// `out[i, j] = rows[first + i] · weight[32 · panel + j]` for `count` rows, a tile at most. The panel is ready.
    pub(crate) fn tile(&self, panel: usize, first: usize, count: usize, out: &mut Tile) {
        let k = self.weight.in_dim();
        let at = panel - self.ready.start;
        match self.rows {
            Rows::Floats(x) => {
                let size = k * WIDTH / 16;
                let lines = match self.weight.lines() {
                    Some(lines) => &lines[panel * size..][..size],
                    None => &self.floats[at * size..][..size],
                };
                tile::multiply(self.isa, &x[first * k..], k, count, k, lines, out);
            }
            Rows::Codes(codes, weight) => {
                let size = k.div_ceil(2) * WIDTH / 16;
                let lines = match weight {
                    Integers::Int8(_) => &self.codes[at * size..][..size],
                    Integers::Int16(weight) => weight.panel(panel),
                };
                integer::multiply(self.isa, codes, first, count, lines, weight.scales(panel), out);
            }
        }
    }
}
