//! A drawing: shapes and words on a sheet, before anybody has chosen text or pixels. Charts are made as drawings; the two back
//! ends ([`svg`](super::svg), [`pixels`](super::pixels)) only put down marks. Coordinates grow to the right and down.

/// What something is painted with; the back ends know the colours, so that a page can be light or dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ink {
    Ground,
    Text,
    Muted,
    Grid,
    /// Lines and bars of a chart, 0 to 6.
    Series(u8),
    Bad,
    /// Steps of a heat map, 0 (almost the ground) to 9.
    Heat(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Mark {
    /// Rectangles of one ink: x, y, width, height.
    Blocks {
        blocks: Vec<[f64; 4]>,
        ink: Ink,
    },
    Line {
        points: Vec<(f64, f64)>,
        ink: Ink,
        width: f64,
        dashed: bool,
    },
    /// A filled outline that shines through.
    Area {
        points: Vec<(f64, f64)>,
        ink: Ink,
        opacity: f64,
    },
    Words {
        x: f64,
        y: f64,
        text: String,
        size: f64,
        ink: Ink,
        anchor: Anchor,
        bold: bool,
    },
}

/// What a reader sees when pointing at a time: the columns of the chart and their values as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hover {
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
    pub at: Vec<String>,
    pub rows: Vec<(String, Vec<String>)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    pub width: f64,
    pub height: f64,
    pub title: String,
    /// What the drawing shows, for those who do not see it.
    pub alternative: String,
    pub marks: Vec<Mark>,
    pub hover: Option<Hover>,
}

impl Drawing {
    pub fn new(width: f64, height: f64, title: &str) -> Drawing {
        Drawing { width, height, title: title.into(), alternative: String::new(), marks: Vec::new(), hover: None }
    }

    pub fn block(&mut self, x: f64, y: f64, width: f64, height: f64, ink: Ink) {
        self.blocks(vec![[x, y, width, height]], ink);
    }

    pub fn blocks(&mut self, blocks: Vec<[f64; 4]>, ink: Ink) {
        if !blocks.is_empty() {
            self.marks.push(Mark::Blocks { blocks, ink });
        }
    }

    pub fn line(&mut self, points: Vec<(f64, f64)>, ink: Ink, width: f64, dashed: bool) {
        if !points.is_empty() {
            self.marks.push(Mark::Line { points, ink, width, dashed });
        }
    }

    pub fn area(&mut self, points: Vec<(f64, f64)>, ink: Ink, opacity: f64) {
        if points.len() > 2 {
            self.marks.push(Mark::Area { points, ink, opacity });
        }
    }

    pub fn words(&mut self, x: f64, y: f64, text: impl Into<String>, ink: Ink, anchor: Anchor) {
        self.sized(x, y, text, 11.0, ink, anchor);
    }

    pub fn sized(&mut self, x: f64, y: f64, text: impl Into<String>, size: f64, ink: Ink, anchor: Anchor) {
        self.marks.push(Mark::Words { x, y, text: text.into(), size, ink, anchor, bold: false });
    }

    pub fn heading(&mut self, x: f64, y: f64, text: impl Into<String>) {
        self.marks.push(Mark::Words {
            x,
            y,
            text: text.into(),
            size: 13.0,
            ink: Ink::Text,
            anchor: Anchor::Start,
            bold: true,
        });
    }
}
