//! The weights of one version as the products read them: a flat buffer or frozen bytes, and their matrices packed into panels once
//! a version.
//!
//! Every lane multiplies by the same matrices, forward by their transposes and backward by themselves. Packed here, no lane
//! packs them again; without panels each product packs what it needs, with the same bits. A frozen matrix without panels is read
//! tile by tile: it never stands there as a whole in f32.

use std::{collections::BTreeMap, ops::Range};

use super::product::{COLUMNS, DEPTH, Matrix, Operand, Product};
use crate::model::frozen::Frozen;

/// Parameters of one version.
#[derive(Clone, Copy)]
pub struct Params<'a> {
    pub source: Source<'a>,
    pub panels: Option<&'a Panels>,
    /// The buffer of what is trained, where that stands beside `source`; else empty.
    pub adapters: &'a [f32],
}

/// Where the layers' own weights are.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Flat(&'a [f32]),
    Frozen(&'a Frozen),
}

impl<'a> Source<'a> {
    fn vector(self, at: usize, len: usize) -> &'a [f32] {
        match self {
            Source::Flat(flat) => &flat[at..][..len],
            Source::Frozen(frozen) => frozen.vector(at, len),
        }
    }

    fn read(self, at: usize, to: &mut [f32]) {
        match self {
            Source::Flat(flat) => to.copy_from_slice(&flat[at..][..to.len()]),
            Source::Frozen(frozen) => frozen.read(at, to),
        }
    }
}

impl<'a> Params<'a> {
    /// The matrix `[rows, cols]` that begins at `at`.
    pub fn weight(&self, at: usize, rows: usize, cols: usize) -> Weight<'a> {
        let panels = self.panels.and_then(|panels| panels.of(at));
        Weight { source: self.source, at, rows, cols, panels }
    }

    /// The vector that begins at `at`.
    pub fn vector(&self, at: usize, len: usize) -> &'a [f32] {
        self.source.vector(at, len)
    }

    /// Row `token` of the embedding, which comes first.
    pub fn embedding(&self, token: u32, row: &mut [f32]) {
        self.source.read(token as usize * row.len(), row);
    }
}

/// Rows and columns of a tile. What a product adds up of one tile is a chain of the fixed order, or some of them: tiles change no
/// bit of it.
const TILE: (usize, usize) = (DEPTH, 4 * DEPTH);

/// Values of a tile.
pub const TILE_VALUES: usize = TILE.0 * TILE.1;

/// A weight matrix `[out, in]`.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    source: Source<'a>,
    at: usize,
    pub rows: usize,
    pub cols: usize,
    panels: Option<[&'a [f32]; 2]>,
}

impl<'a> Weight<'a> {
    /// What inputs are multiplied by, where it is there as a whole.
    fn transposed(self) -> Option<Operand<'a>> {
        match (self.panels, self.source) {
            (Some([panels, _]), _) => Some(Operand::Packed { rows: self.cols, cols: self.rows, panels }),
            (None, Source::Flat(flat)) => Some(Matrix::new(&flat[self.at..], self.rows, self.cols).t().into()),
            (None, Source::Frozen(_)) => None,
        }
    }

    /// What the gradients of outputs are multiplied by, where it is there as a whole.
    fn straight(self) -> Option<Operand<'a>> {
        match (self.panels, self.source) {
            (Some([_, panels]), _) => Some(Operand::Packed { rows: self.rows, cols: self.cols, panels }),
            (None, Source::Flat(flat)) => Some(Matrix::new(&flat[self.at..], self.rows, self.cols).into()),
            (None, Source::Frozen(_)) => None,
        }
    }

    /// `y = (add ? y : 0) + x w^T`, rows without gaps. `tile`: work space.
    pub fn forward<P: Product>(self, product: &mut P, y: &mut [f32], add: bool, x: &[f32], tile: &mut Vec<f32>) {
        let x = Matrix::new(x, x.len() / self.cols, self.cols);
        match self.transposed() {
            Some(operand) => product.product(y, self.rows, add, x, operand, 1.0),
            None => self.forward_tiled(product, y, add, x, 0..self.rows, tile),
        }
    }

    /// The columns `cols` of what [`forward`](Weight::forward) gives, without gaps. They begin at a multiple of [`COLUMNS`].
    pub fn columns<P: Product>(
        self,
        product: &mut P,
        y: &mut [f32],
        x: &[f32],
        cols: Range<usize>,
        tile: &mut Vec<f32>,
    ) {
        let x = Matrix::new(x, x.len() / self.cols, self.cols);
        match self.transposed() {
            Some(operand) => product.columns(y, x, operand, cols),
            None => self.forward_tiled(product, y, false, x, cols, tile),
        }
    }

    /// `dx = dy w`, rows without gaps. `tile`: work space.
    pub fn backward<P: Product>(self, product: &mut P, dx: &mut [f32], dy: &[f32], tile: &mut Vec<f32>) {
        let dy = Matrix::new(dy, dy.len() / self.rows, self.rows);
        if let Some(operand) = self.straight() {
            return product.product(dx, self.cols, false, dy, operand, 1.0);
        }
        for rows in parts(0..self.rows, TILE.0) {
            let part = Matrix { data: dy.data.get(rows.start..).unwrap_or_default(), cols: rows.len(), ..dy };
            for cols in parts(0..self.cols, TILE.1) {
                let w = self.read(rows.clone(), cols.clone(), tile);
                let dx = dx.get_mut(cols.start..).unwrap_or_default();
                product.product(dx, self.cols, rows.start > 0, part, w, 1.0);
            }
        }
    }

    fn forward_tiled<P: Product>(
        self,
        product: &mut P,
        y: &mut [f32],
        add: bool,
        x: Matrix<'_>,
        wanted: Range<usize>,
        tile: &mut Vec<f32>,
    ) {
        for rows in parts(wanted.clone(), TILE.0) {
            let y = y.get_mut(rows.start - wanted.start..).unwrap_or_default();
            for cols in parts(0..self.cols, TILE.1) {
                let w = self.read(rows.clone(), cols.clone(), tile);
                let part = Matrix { data: x.data.get(cols.start..).unwrap_or_default(), cols: cols.len(), ..x };
                product.product(y, wanted.len(), add || cols.start > 0, part, w.t(), 1.0);
            }
        }
    }

    /// A tile of it.
    fn read<'b>(self, rows: Range<usize>, cols: Range<usize>, tile: &'b mut Vec<f32>) -> Matrix<'b> {
        let values = rows.len() * cols.len();
        if tile.len() < values {
            tile.resize(values, 0.0);
        }
        let (first, height, width) = (self.at + cols.start, rows.len(), cols.len());
        match width == self.cols {
            true => self.source.read(first + rows.start * width, &mut tile[..values]),
            false => {
                for (row, to) in rows.zip(tile.chunks_exact_mut(width)) {
                    self.source.read(first + row * self.cols, to);
                }
            }
        }
        Matrix::new(&tile[..values], height, width)
    }
}

/// A range in parts of at most `most`.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(most).map(move |first| first..end.min(first + most))
}

const _: () = assert!(TILE.0.is_multiple_of(COLUMNS), "columns begin at tiles");

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

    /// Packs `source`, which is `version`, unless that is packed already.
    pub fn fill<P: Product>(&mut self, pool: &P, source: Source<'_>, version: u64) {
        if self.holds(version) {
            return;
        }
        const LINE: usize = 16;
        self.data.resize(self.values() + LINE, 0.0);
        self.begin = self.data.as_ptr().align_offset(4 * LINE).min(LINE);
        self.version = None;
        let mut rest = &mut self.data[self.begin..];
        let mut take = |range: &Range<usize>| {
            let (to, left) = std::mem::take(&mut rest).split_at_mut(range.len());
            rest = left;
            to
        };
        // Places were laid out in the order of the matrices, which is that of the map.
        let places = self.places.iter().map(|(at, place)| (*at, place, place.panels.each_ref().map(&mut take)));
        let (mut whole, mut read) = (Vec::with_capacity(2 * self.places.len()), Vec::new());
        for (at, place, panels) in places {
            let both = |matrix: Matrix<'_>, [transposed, straight]: [&mut [f32]; 2]| {
                pool.each(&mut [(matrix.t(), transposed), (matrix, straight)], |(matrix, to)| pool.pack(*matrix, to));
            };
            match source {
                Source::Flat(flat) => {
                    let matrix = Matrix::new(&flat[at..], place.rows, place.cols);
                    whole.extend([matrix.t(), matrix].into_iter().zip(panels));
                }
                // One matrix at a time stands there in f32.
                Source::Frozen(frozen) => {
                    read.resize(place.rows * place.cols, 0.0);
                    frozen.read(at, &mut read);
                    both(Matrix::new(&read, place.rows, place.cols), panels);
                }
            }
        }
        pool.each(&mut whole, |(matrix, to)| pool.pack(*matrix, to));
        self.version = Some(version);
    }

    /// Forgets what is packed, and its memory.
    pub fn clear(&mut self) {
        (self.version, self.data) = (None, Vec::new());
    }
}
