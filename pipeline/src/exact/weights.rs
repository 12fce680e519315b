//! The weights of one version as the products read them: the flat buffer, and its matrices packed into panels once a version.
//!
//! Every lane multiplies by the same matrices, forward by their transposes and backward by themselves. Packed here, no lane
//! packs them again; without panels each product packs what it needs, with the same bits.

use std::{collections::BTreeMap, ops::Range};

use super::product::{Matrix, Operand, Product};

/// Parameters of one version.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    pub flat: &'a [f32],
    pub panels: Option<&'a Panels>,
    /// The buffer of what is trained, where that stands beside `flat`; else empty.
    pub adapters: &'a [f32],
}

impl<'a> Params<'a> {
    /// The matrix `[rows, cols]` that begins at `at`.
    pub fn weight(&self, at: usize, rows: usize, cols: usize) -> Weight<'a> {
        let panels = self.panels.and_then(|panels| panels.of(at));
        Weight { matrix: Matrix::new(&self.flat[at..], rows, cols), panels }
    }
}

/// A weight matrix `[out, in]`.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    matrix: Matrix<'a>,
    panels: Option<[&'a [f32]; 2]>,
}

impl<'a> Weight<'a> {
    /// What inputs are multiplied by.
    pub fn forward(self) -> Operand<'a> {
        Operand { matrix: self.matrix.t(), panels: self.panels.map(|p| p[0]) }
    }

    /// What the gradients of outputs are multiplied by.
    pub fn backward(self) -> Operand<'a> {
        Operand { matrix: self.matrix, panels: self.panels.map(|p| p[1]) }
    }
}

/// Every matrix of one version, packed for both products.
pub struct Panels {
    /// Version that is packed.
    version: Option<u64>,
    data: Vec<f32>,
    /// Where panels begin in it: at a line of the caches, since what lies across two costs as much as two.
    begin: usize,
    /// By where the matrix begins in the flat buffer.
    places: BTreeMap<usize, Place>,
}

struct Place {
    rows: usize,
    cols: usize,
    panels: [Range<usize>; 2],
}

impl Panels {
    /// Nothing packed yet. `matrices`: where each begins, its rows and columns.
    pub fn new<P: Product>(product: &P, matrices: impl Iterator<Item = (usize, usize, usize)>) -> Self {
        let mut end = 0;
        let mut take = |rows: usize, cols: usize| {
            let start = end;
            end += product.packed_len(rows, cols);
            start..end
        };
        let place = |(at, rows, cols)| (at, Place { rows, cols, panels: [take(cols, rows), take(rows, cols)] });
        let places = matrices.map(place).collect();
        Panels { version: None, data: Vec::new(), begin: 0, places }
    }

    fn of(&self, at: usize) -> Option<[&[f32]; 2]> {
        let place = self.places.get(&at)?;
        Some(place.panels.clone().map(|range| &self.data[self.begin..][range]))
    }

    /// Values of all panels, packed or not.
    pub fn values(&self) -> usize {
        self.places.values().map(|place| place.panels[1].end).max().unwrap_or(0)
    }

    pub fn holds(&self, version: u64) -> bool {
        self.version == Some(version)
    }

    /// Packs `flat`, which is `version`, unless that is packed already.
    pub fn fill<P: Product>(&mut self, pool: &P, flat: &[f32], version: u64) {
        if self.holds(version) {
            return;
        }
        const LINE: usize = 16;
        self.data.resize(self.values() + LINE, 0.0);
        self.begin = self.data.as_ptr().align_offset(4 * LINE).min(LINE);
        self.version = None;
        let mut work = Vec::with_capacity(2 * self.places.len());
        let mut rest = &mut self.data[self.begin..];
        // Places were laid out in the order of the matrices, which is that of the map.
        for (&at, place) in &self.places {
            let matrix = Matrix::new(&flat[at..], place.rows, place.cols);
            for (matrix, range) in [matrix.t(), matrix].into_iter().zip(&place.panels) {
                let (to, left) = std::mem::take(&mut rest).split_at_mut(range.len());
                rest = left;
                work.push((matrix, to));
            }
        }
        pool.each(&mut work, |(matrix, to)| pool.pack(*matrix, to));
        self.version = Some(version);
    }

    /// Forgets what is packed, and its memory.
    pub fn clear(&mut self) {
        (self.version, self.data) = (None, Vec::new());
    }
}
