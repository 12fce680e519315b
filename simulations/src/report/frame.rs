//! Kinds of charts: lines over time, rows of bars, columns of bars, and grids of cells. In: numbers with names. Out: drawings that
//! hold up with nothing in them, with one value, and with values that are no numbers.

use super::{
    drawing::{Anchor, Drawing, Hover, Ink},
    numbers::{clock, figure, short},
};

/// Half a page; two stand beside each other on paper, one above the other on a phone.
pub const NARROW: f64 = 460.0;
/// The whole width.
pub const WIDE: f64 = 944.0;

const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 26.0;

/// One line: its name and its values, one a column.
pub struct Strand {
    pub name: String,
    pub ink: Ink,
    pub dashed: bool,
    pub values: Vec<f64>,
}

impl Strand {
    pub fn new(name: &str, ink: Ink, values: Vec<f64>) -> Strand {
        Strand { name: name.into(), ink, dashed: false, values }
    }

    pub fn dashed(mut self) -> Strand {
        self.dashed = true;
        self
    }
}

/// Lines over the simulated time.
pub struct Lines {
    pub title: String,
    pub alternative: String,
    /// Start and end of each column.
    pub times: Vec<(f64, f64)>,
    pub strands: Vec<Strand>,
    /// Between these two a band is shaded.
    pub band: Option<(Vec<f64>, Vec<f64>)>,
    /// On top of each other instead of beside.
    pub stacked: bool,
    /// Moments that are marked above the plot.
    pub ticks: Vec<f64>,
    /// Times that are shaded, each with its word; one without length is a line.
    pub spans: Vec<(f64, f64, String)>,
    /// The axis starts at 0 and ends here, whatever the values.
    pub top: Option<f64>,
    /// The axis need not start at 0.
    pub floating: bool,
    pub written: fn(f64) -> String,
}

impl Lines {
    pub fn new(title: &str, times: Vec<(f64, f64)>, written: fn(f64) -> String) -> Lines {
        Lines {
            title: title.into(),
            alternative: String::new(),
            times,
            strands: Vec::new(),
            band: None,
            stacked: false,
            ticks: Vec::new(),
            spans: Vec::new(),
            top: None,
            floating: false,
            written,
        }
    }

    pub fn draw(self, width: f64, height: f64) -> Drawing {
        let mut sheet = Drawing::new(width, height, &self.title);
        sheet.alternative = if self.alternative.is_empty() { self.described() } else { self.alternative.clone() };
        sheet.heading(0.0, 14.0, self.title.clone());
        let legend: Vec<(&str, Ink)> = self.strands.iter().map(|strand| (strand.name.as_str(), strand.ink)).collect();
        if self.strands.len() > 1 {
            put_legend(&mut sheet, &legend, 32.0);
        }
        let (left, right, top, bottom) = (LEFT, width - RIGHT, TOP, height - BOTTOM);
        let heights = self.heights();
        let values = heights.iter().flatten().chain(self.band.iter().flat_map(|(low, high)| low.iter().chain(high)));
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.copied().filter(|value| value.is_finite()) {
            least = least.min(value);
            most = most.max(value);
        }
        if self.times.is_empty() || !least.is_finite() {
            empty(&mut sheet, (left + right) / 2.0, (top + bottom) / 2.0);
            return sheet;
        }
        let axis = match self.top {
            Some(end) => Axis::between(0.0, end),
            None if self.floating => Axis::between(least, most),
            None => Axis::between(least.min(0.0), most.max(0.0)),
        };
        let y = |value: f64| bottom - (value - axis.low) / (axis.high - axis.low) * (bottom - top);
        for tick in axis.ticks() {
            sheet.line(vec![(left, y(tick)), (right, y(tick))], Ink::Grid, 1.0, false);
            sheet.words(left - 6.0, y(tick) + 4.0, (self.written)(tick), Ink::Muted, Anchor::End);
        }
        let (start, end) = (self.times[0].0, self.times[self.times.len() - 1].1);
        let long = if end > start { end - start } else { 1.0 };
        let x = |at: f64| left + (at - start) / long * (right - left);
        time_axis(&mut sheet, start, end, left, right, bottom);
        self.shade(&mut sheet, (start, end), (top, bottom), x);
        let middles: Vec<f64> = self.times.iter().map(|(from, to)| x((from + to) / 2.0)).collect();
        if let Some((low, high)) = &self.band {
            let mut outline: Vec<(f64, f64)> =
                middles.iter().zip(high).filter(|(_, v)| v.is_finite()).map(|(x, v)| (*x, y(*v))).collect();
            outline.extend(middles.iter().zip(low).filter(|(_, v)| v.is_finite()).map(|(x, v)| (*x, y(*v))).rev());
            sheet.area(outline, Ink::Series(0), 0.16);
        }
        if self.stacked {
            let mut under = vec![0.0; middles.len()];
            for (strand, above) in self.strands.iter().zip(&heights) {
                let clean: Vec<f64> = above.iter().map(|value| if value.is_finite() { *value } else { 0.0 }).collect();
                let (edge, floor) = (self.outline(&middles, &clean, x), self.outline(&middles, &under, x));
                let mut outline: Vec<(f64, f64)> = edge.into_iter().map(|(x, v)| (x, y(v))).collect();
                outline.extend(floor.into_iter().map(|(x, v)| (x, y(v))).rev());
                sheet.area(outline, strand.ink, 0.85);
                under = clean;
            }
        } else {
            for (strand, heights) in self.strands.iter().zip(&heights) {
                for piece in pieces(&self.outline(&middles, heights, x)) {
                    let piece = piece.into_iter().map(|(x, v)| (x, y(v.clamp(axis.low, axis.high)))).collect();
                    sheet.line(piece, strand.ink, 1.6, strand.dashed);
                }
            }
        }
        sheet.blocks(self.marked(start, end, left, right, top - 2.0), Ink::Bad);
        sheet.hover = Some(Hover {
            left,
            right,
            top,
            bottom,
            at: self.times.iter().map(|(_, to)| clock(*to)).collect(),
            rows: self
                .strands
                .iter()
                .map(|strand| (strand.name.clone(), strand.values.iter().map(|value| (self.written)(*value)).collect()))
                .collect(),
        });
        sheet
    }

    /// Spans under the lines, with their words in a few rows, since neighbours would stand on each other.
    fn shade(&self, sheet: &mut Drawing, time: (f64, f64), (top, bottom): (f64, f64), x: impl Fn(f64) -> f64) {
        const ROWS: usize = 4;
        let inside = |(from, until, _): &&(f64, f64, String)| {
            from.is_finite() && until.is_finite() && *from <= time.1 && *until >= time.0
        };
        for (row, (from, until, word)) in self.spans.iter().filter(inside).enumerate() {
            let (left, right) = (x(from.clamp(time.0, time.1)), x(until.clamp(time.0, time.1)));
            if right - left > 1.0 {
                sheet.area(vec![(left, top), (right, top), (right, bottom), (left, bottom)], Ink::Bad, 0.12);
            } else {
                sheet.line(vec![(left, top), (left, bottom)], Ink::Bad, 1.0, true);
            }
            let beyond = left > x((time.0 + time.1) / 2.0);
            let (at, anchor) = if beyond { (left - 3.0, Anchor::End) } else { (left + 3.0, Anchor::Start) };
            sheet.words(at, top + 10.0 + 12.0 * (row % ROWS) as f64, word.clone(), Ink::Muted, anchor);
        }
    }

    /// Ticks above the plot; where many fall together, one is as high as they are many.
    fn marked(&self, start: f64, end: f64, left: f64, right: f64, bottom: f64) -> Vec<[f64; 4]> {
        const WIDTH: f64 = 2.5;
        let bins = ((right - left) / WIDTH).floor().max(1.0);
        let mut many = vec![0_u32; bins as usize];
        for at in self.ticks.iter().filter(|at| **at >= start && **at <= end) {
            let bin = ((at - start) / (end - start).max(1e-9) * bins) as usize;
            let last = many.len() - 1;
            many[bin.min(last)] += 1;
        }
        let most = f64::from(many.iter().copied().max().unwrap_or(0).max(1));
        many.iter()
            .enumerate()
            .filter(|(_, many)| **many > 0)
            .map(|(bin, many)| {
                let high = 2.0 + 9.0 * f64::from(*many) / most;
                [left + WIDTH * bin as f64, bottom - high, 1.2, high]
            })
            .collect()
    }

    /// A single column is drawn over its whole length, so that something is seen.
    fn outline(&self, middles: &[f64], values: &[f64], x: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        if let ([(from, to)], [value]) = (self.times.as_slice(), values) {
            return vec![(x(*from), *value), (x(*to), *value)];
        }
        middles.iter().copied().zip(values.iter().copied()).collect()
    }

    /// Where each line runs: its values, or with all below it.
    fn heights(&self) -> Vec<Vec<f64>> {
        let mut all: Vec<Vec<f64>> = Vec::new();
        for strand in &self.strands {
            let under = if self.stacked { all.last().cloned() } else { None };
            let add = |(place, value): (usize, &f64)| match &under {
                Some(under) => value + under.get(place).copied().unwrap_or(0.0),
                None => *value,
            };
            all.push(strand.values.iter().enumerate().map(add).collect());
        }
        all
    }

    fn described(&self) -> String {
        let mut sentences = vec![format!("{} over the simulated time.", self.title)];
        for (from, until, word) in &self.spans {
            sentences.push(format!("Planned: {word}, {} to {}.", clock(*from), clock(*until)));
        }
        for strand in &self.strands {
            let known: Vec<f64> = strand.values.iter().copied().filter(|value| value.is_finite()).collect();
            let (Some(first), Some(last)) = (known.first(), known.last()) else {
                sentences.push(format!("{}: no values.", strand.name));
                continue;
            };
            let least = known.iter().copied().fold(f64::INFINITY, f64::min);
            let most = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let text = self.written;
            sentences.push(format!(
                "{}: from {} to {} at the end, between {} and {}.",
                strand.name,
                text(*first),
                text(*last),
                text(least),
                text(most)
            ));
        }
        sentences.join(" ")
    }
}

/// Runs of points without a gap.
fn pieces(points: &[(f64, f64)]) -> Vec<Vec<(f64, f64)>> {
    points.split(|(_, value)| !value.is_finite()).filter(|piece| !piece.is_empty()).map(<[_]>::to_vec).collect()
}

/// Bars to the right, one below the other: name, part of the whole width, what is written behind, ink.
pub fn rows(title: &str, bars: &[(String, f64, String, Ink)], width: f64) -> Drawing {
    let height = 30.0 + 23.0 * bars.len().max(1) as f64;
    let mut sheet = Drawing::new(width, height, title);
    sheet.heading(0.0, 14.0, title);
    let said: Vec<String> = bars.iter().map(|(name, _, text, _)| format!("{name}: {text}")).collect();
    sheet.alternative = if said.is_empty() { "Nothing to show.".into() } else { format!("{}.", said.join("; ")) };
    if bars.is_empty() {
        empty(&mut sheet, width / 2.0, 40.0);
        return sheet;
    }
    let named = 6.8 * bars.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0) as f64 + 10.0;
    let behind = 6.8 * bars.iter().map(|(_, _, text, _)| text.chars().count()).max().unwrap_or(0) as f64 + 10.0;
    let room = (width - named - behind).max(20.0);
    for (place, (name, part, text, ink)) in bars.iter().enumerate() {
        let y = 28.0 + 23.0 * place as f64;
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        sheet.words(0.0, y + 12.0, name.clone(), Ink::Text, Anchor::Start);
        sheet.block(named, y, room, 16.0, Ink::Heat(0));
        sheet.block(named, y, (room * part).max(if part > 0.0 { 1.0 } else { 0.0 }), 16.0, *ink);
        sheet.words(named + room + 8.0, y + 12.0, text.clone(), Ink::Text, Anchor::Start);
    }
    sheet
}

/// Bars beside each other: for each place some values of 0 to `top`, upwards; negative ones downwards.
pub struct Bars {
    pub title: String,
    pub alternative: String,
    pub names: Vec<(String, Ink)>,
    /// Of each place, a value for each name.
    pub places: Vec<Vec<f64>>,
    pub stacked: bool,
    pub top: Option<f64>,
    pub written: fn(f64) -> String,
}

/// What is written below bars.
pub enum Below {
    /// First and last name and some between.
    Names(Vec<String>),
    Time(f64, f64),
}

impl Bars {
    pub fn draw(self, width: f64, height: f64, below: &Below) -> Drawing {
        let mut sheet = Drawing::new(width, height, &self.title);
        sheet.alternative = self.alternative.clone();
        sheet.heading(0.0, 14.0, self.title.clone());
        if self.names.len() > 1 {
            let legend: Vec<(&str, Ink)> = self.names.iter().map(|(name, ink)| (name.as_str(), *ink)).collect();
            put_legend(&mut sheet, &legend, 32.0);
        }
        let (left, right, top, bottom) = (LEFT, width - RIGHT, TOP, height - BOTTOM);
        let (mut least, mut most) = (0.0_f64, 0.0_f64);
        for place in &self.places {
            let (mut up, mut down) = (0.0, 0.0);
            for value in place.iter().copied().filter(|value| value.is_finite()) {
                if self.stacked {
                    if value > 0.0 { up += value } else { down += value }
                } else {
                    up = value.max(up);
                    down = value.min(down);
                }
            }
            least = least.min(down);
            most = most.max(up);
        }
        if self.places.is_empty() || (least == 0.0 && most == 0.0 && self.top.is_none()) {
            empty(&mut sheet, (left + right) / 2.0, (top + bottom) / 2.0);
            return sheet;
        }
        let axis = Axis::between(least, self.top.unwrap_or(most));
        let y = |value: f64| {
            bottom - (value.clamp(axis.low, axis.high) - axis.low) / (axis.high - axis.low) * (bottom - top)
        };
        for tick in axis.ticks() {
            sheet.line(vec![(left, y(tick)), (right, y(tick))], Ink::Grid, 1.0, false);
            sheet.words(left - 6.0, y(tick) + 4.0, (self.written)(tick.abs()), Ink::Muted, Anchor::End);
        }
        let step = (right - left) / self.places.len() as f64;
        let gap = (step * 0.2).min(6.0);
        let each = if self.stacked { step - gap } else { (step - gap) / self.names.len().max(1) as f64 };
        let each = each.min(26.0);
        let mut blocks: Vec<Vec<[f64; 4]>> = vec![Vec::new(); self.names.len()];
        for (place, values) in self.places.iter().enumerate() {
            let whole = if self.stacked { each } else { each * self.names.len() as f64 };
            let from = left + step * (place as f64 + 0.5) - whole / 2.0;
            let (mut up, mut down) = (0.0, 0.0);
            for (which, value) in values.iter().copied().enumerate().take(self.names.len()) {
                if !value.is_finite() || value == 0.0 {
                    continue;
                }
                let under = if !self.stacked {
                    0.0
                } else if value > 0.0 {
                    up += value;
                    up - value
                } else {
                    down += value;
                    down - value
                };
                let (high, low) = (y(under.max(under + value)), y(under.min(under + value)));
                let x = if self.stacked { from } else { from + each * which as f64 };
                blocks[which].push([x, high, each, (low - high).max(0.5)]);
            }
        }
        for (which, blocks) in blocks.into_iter().enumerate() {
            sheet.blocks(blocks, self.names[which].1);
        }
        sheet.line(vec![(left, y(0.0)), (right, y(0.0))], Ink::Muted, 1.0, false);
        match below {
            Below::Time(start, end) => time_axis(&mut sheet, *start, *end, left, right, bottom),
            Below::Names(names) => {
                let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(1) as f64 * 7.0 + 10.0;
                let each = (widest / step).ceil().max(1.0) as usize;
                for (place, name) in names.iter().enumerate().filter(|(place, _)| place % each == 0) {
                    let x = left + step * (place as f64 + 0.5);
                    sheet.words(x, bottom + 16.0, name.clone(), Ink::Muted, Anchor::Middle);
                }
            }
        }
        sheet
    }
}

/// Rows and columns of cells over time, each from 0 to 1 or a hole.
pub fn grid(
    title: &str,
    alternative: String,
    cells: &[Vec<Option<f64>>],
    names: &[String],
    time: (f64, f64),
    legend: (&str, &str),
) -> Drawing {
    let each = (300.0 / cells.len().max(1) as f64).clamp(4.0, 22.0);
    let (left, right, top) = (LEFT, WIDE - RIGHT, 30.0);
    let bottom = top + each * cells.len().max(2) as f64;
    let mut sheet = Drawing::new(WIDE, bottom + BOTTOM, title);
    sheet.alternative = alternative;
    sheet.heading(0.0, 14.0, title);
    let wide = cells.iter().map(Vec::len).max().unwrap_or(0);
    if wide == 0 {
        empty(&mut sheet, WIDE / 2.0, (top + bottom) / 2.0);
        return sheet;
    }
    put_scale(&mut sheet, right, legend);
    let step = (right - left) / wide as f64;
    let gap = if each > 8.0 { 1.5 } else { 0.5 };
    let mut blocks: Vec<Vec<[f64; 4]>> = vec![Vec::new(); 11];
    for (row, values) in cells.iter().enumerate() {
        let y = top + each * row as f64;
        let inks: Vec<usize> = values.iter().map(|value| value.map_or(10, step_of)).collect();
        let mut from = 0;
        // Neighbours of one ink are one block: a quiet day is one, not a thousand.
        for run in inks.chunk_by(|a, b| a == b) {
            let x = left + step * from as f64;
            blocks[run[0]].push([x, y, step * run.len() as f64, each - gap]);
            from += run.len();
        }
    }
    for (which, blocks) in blocks.into_iter().enumerate() {
        sheet.blocks(blocks, if which == 10 { Ink::Bad } else { Ink::Heat(which as u8) });
    }
    let skip = (13.0 / each).ceil().max(1.0) as usize;
    for (row, name) in names.iter().enumerate().filter(|(row, _)| row % skip == 0) {
        sheet.words(left - 6.0, top + each * (row as f64 + 0.5) + 3.5, name.clone(), Ink::Muted, Anchor::End);
    }
    time_axis(&mut sheet, time.0, time.1, left, right, bottom);
    sheet
}

/// The step of the heat colours for a part of the most.
pub fn step_of(part: f64) -> usize {
    if part.is_finite() { ((part.clamp(0.0, 1.0) * 9.0).round()) as usize } else { 0 }
}

fn put_scale(sheet: &mut Drawing, right: f64, (high, hole): (&str, &str)) {
    let wide = 7.0 * high.chars().count() as f64 + 8.0;
    let mut x = right - wide - 10.0 * 9.0;
    sheet.words(right, 14.0, high, Ink::Muted, Anchor::End);
    for step in 0..10 {
        sheet.block(x + 9.0 * f64::from(step) - 2.0, 5.0, 9.0, 10.0, Ink::Heat(step));
    }
    if !hole.is_empty() {
        x -= 7.0 * hole.chars().count() as f64 + 14.0;
        sheet.words(x, 14.0, hole, Ink::Muted, Anchor::Start);
        sheet.block(x - 14.0, 5.0, 10.0, 10.0, Ink::Bad);
    }
}

fn put_legend(sheet: &mut Drawing, entries: &[(&str, Ink)], y: f64) {
    let mut x = 0.0;
    for (name, ink) in entries {
        sheet.block(x, y - 8.0, 9.0, 9.0, *ink);
        sheet.words(x + 13.0, y, *name, Ink::Muted, Anchor::Start);
        x += 13.0 + 6.4 * name.chars().count() as f64 + 12.0;
    }
}

pub fn empty(sheet: &mut Drawing, x: f64, y: f64) {
    sheet.words(x, y, "nothing was recorded", Ink::Muted, Anchor::Middle);
    if !sheet.alternative.contains("Nothing was recorded") {
        sheet.alternative.push_str(" Nothing was recorded.");
    }
}

fn time_axis(sheet: &mut Drawing, start: f64, end: f64, left: f64, right: f64, bottom: f64) {
    let long = if end > start { end - start } else { 1.0 };
    let (unit, name) = match long {
        long if long > 3.0 * 86_400.0 => (86_400.0, "d"),
        long if long > 2.0 * 3600.0 => (3600.0, "h"),
        long if long > 120.0 => (60.0, "min"),
        _ => (1.0, "s"),
    };
    let most = ((right - left) / 62.0).floor().max(2.0);
    let steps = [1.0, 2.0, 3.0, 4.0, 6.0, 12.0];
    let natural = if name == "h" { steps.iter().copied().find(|step| long / unit / step <= most) } else { None };
    let step = natural.unwrap_or_else(|| nice(long / unit / most)) * unit;
    let mut at = (start / step).ceil() * step;
    while at <= end + step * 1e-9 {
        let x = left + (at - start) / long * (right - left);
        // The last word must not run over the edge.
        let anchor = if x > right - 16.0 { Anchor::End } else { Anchor::Middle };
        sheet.block(x - 0.5, bottom, 1.0, 4.0, Ink::Grid);
        sheet.words(x, bottom + 16.0, format!("{} {name}", plain(at / unit)), Ink::Muted, anchor);
        at += step;
    }
}

/// A number of an axis: without zeros that say nothing.
pub fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// An axis of values that starts and ends at round numbers.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn between(least: f64, most: f64) -> Axis {
        let (least, most) = if most > least {
            (least, most)
        } else if most > 0.0 && least > 0.0 {
            (least * 0.9, most * 1.1)
        } else {
            (least, least + 1.0)
        };
        let step = nice((most - least) / 4.0);
        Axis { low: (least / step).floor() * step, high: (most / step - 1e-9).ceil() * step, step }
    }

    fn ticks(&self) -> Vec<f64> {
        let number = ((self.high - self.low) / self.step).round() as usize;
        (0..=number.min(12)).map(|tick| self.low + self.step * tick as f64).collect()
    }
}

/// The next of 1, 2, 2.5 and 5 times a power of ten.
fn nice(value: f64) -> f64 {
    if !(value > 0.0 && value.is_finite()) {
        return 1.0;
    }
    let mut power = 1.0;
    while power > value {
        power /= 10.0;
    }
    while power * 10.0 <= value {
        power *= 10.0;
    }
    [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value * 0.999_999)
        .unwrap_or(power * 10.0)
}

/// Numbers at an axis.
pub fn at_axis(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let text = short(value);
    // 20.0 k says no more than 20 k.
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') && !unit.chars().any(|c| c.is_ascii_digit()) => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        None if text.contains('.') && !text.contains('e') => {
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        }
        _ => text,
    }
}

/// Percent at an axis, and in a hover.
pub fn at_percent(value: f64) -> String {
    if value.is_finite() { format!("{} %", plain((value * 1000.0).round() / 10.0)) } else { figure(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_around_the_values() {
        let axis = Axis::between(0.0, 18_400.0);
        assert_eq!((axis.low, axis.high, axis.step), (0.0, 20_000.0, 5_000.0));
        assert_eq!(Axis::between(3.0, 3.0).ticks().first().copied().map(|tick| tick < 3.0), Some(true));
    }

    #[test]
    fn a_line_is_broken_where_there_is_no_number() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0), (3.0, 2.5)];
        assert_eq!(pieces(&points), vec![vec![(0.0, 1.0)], vec![(2.0, 2.0), (3.0, 2.5)]]);
    }
}
