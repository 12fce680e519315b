//! A [`Drawing`] as a PNG: light, twice as fine as the page, with letters that come with the program. No font of the system is
//! asked for, so a picture is the same everywhere.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use tiny_skia::{Color, FillRule, LineCap, LineJoin, Paint, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};

use super::drawing::{Anchor, Drawing, Ink, Mark};

/// Pixels of one unit of a drawing.
const FINE: f64 = 2.0;
/// Sheets larger than this on a side are drawn smaller: a picture is to be looked at.
const SIDE_MAX: f64 = 8000.0;

/// Around the drawings, so that letters do not touch the edge.
const MARGIN: f64 = 16.0;

/// Several drawings below each other as one PNG, and below them a line that says where they come from: a picture travels alone.
pub fn png(drawings: &[Drawing], origin: &str) -> Vec<u8> {
    let width = drawings.iter().map(|drawing| drawing.width).fold(300.0, f64::max) + 2.0 * MARGIN;
    let height = drawings.iter().map(|drawing| drawing.height + MARGIN).sum::<f64>() + 2.0 * MARGIN;
    let fine = FINE.min(SIDE_MAX / width.max(height));
    let mut sheet = Pixmap::new((width * fine).ceil() as u32, (height * fine).ceil() as u32)
        .expect("sides are at least one pixel and bounded");
    sheet.fill(color(Ink::Ground));
    let mut down = MARGIN;
    for drawing in drawings {
        for mark in &drawing.marks {
            put(&mut sheet, mark, down, fine);
        }
        down += drawing.height + MARGIN;
    }
    let letters = ((width - 2.0 * MARGIN) / 6.0) as usize;
    let text = origin.chars().take(letters).collect();
    let (x, y, size) = (0.0, 4.0, 10.0);
    let origin = Mark::Words { x, y, text, size, ink: Ink::Muted, anchor: Anchor::Start, bold: false };
    put(&mut sheet, &origin, down, fine);
    sheet.encode_png().expect("a sheet in memory has a form of PNG")
}

fn put(sheet: &mut Pixmap, mark: &Mark, down: f64, fine: f64) {
    let at = |x: f64, y: f64| (((x + MARGIN) * fine) as f32, ((y + down) * fine) as f32);
    match mark {
        Mark::Blocks { blocks, ink } => {
            let paint = paint(*ink, 1.0);
            for [x, y, width, height] in blocks {
                let (left, top) = at(*x, *y);
                if let Some(rect) = Rect::from_xywh(left, top, (width * fine) as f32, (height * fine) as f32) {
                    sheet.fill_rect(rect, &paint, Transform::identity(), None);
                }
            }
        }
        Mark::Line { points, ink, width, dashed } => {
            let mut path = PathBuilder::new();
            for (place, (x, y)) in points.iter().enumerate() {
                let (x, y) = at(*x, *y);
                if place == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
            }
            if let [(x, y)] = points.as_slice() {
                let (x, y) = at(x + 1.5, *y);
                path.line_to(x, y);
            }
            let dash = dashed.then(|| StrokeDash::new(vec![4.0 * fine as f32, 3.0 * fine as f32], 0.0)).flatten();
            let stroke = Stroke {
                width: (width * fine) as f32,
                line_cap: LineCap::Butt,
                line_join: LineJoin::Round,
                dash,
                ..Stroke::default()
            };
            if let Some(path) = path.finish() {
                sheet.stroke_path(&path, &paint(*ink, 1.0), &stroke, Transform::identity(), None);
            }
        }
        Mark::Area { points, ink, opacity } => {
            let mut path = PathBuilder::new();
            for (place, (x, y)) in points.iter().enumerate() {
                let (x, y) = at(*x, *y);
                if place == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
            }
            path.close();
            if let Some(path) = path.finish() {
                sheet.fill_path(&path, &paint(*ink, *opacity), FillRule::Winding, Transform::identity(), None);
            }
        }
        Mark::Words { x, y, text, size, ink, anchor, bold } => {
            let (x, y) = at(*x, *y);
            write(sheet, x, y, text, (size * fine) as f32, color(*ink), *anchor, *bold);
        }
    }
}

/// Puts letters on the sheet; `y` is the line on which they stand.
#[allow(clippy::too_many_arguments)]
fn write(sheet: &mut Pixmap, x: f32, y: f32, text: &str, size: f32, ink: Color, anchor: Anchor, bold: bool) {
    // The raster is as high as a line; its letters are those of a font about a tenth smaller.
    let height = match size {
        size if size < 23.0 => RasterHeight::Size20,
        size if size < 28.0 => RasterHeight::Size24,
        _ => RasterHeight::Size32,
    };
    let weight = if bold { FontWeight::Bold } else { FontWeight::Regular };
    let step = get_raster_width(weight, height);
    let long = (step * text.chars().count()) as f32;
    let left = match anchor {
        Anchor::Start => x,
        Anchor::Middle => x - long / 2.0,
        Anchor::End => x - long,
    };
    // Letters stand four fifths below the top of their raster.
    let top = y - height.val() as f32 * 0.8;
    let (columns, rows) = (sheet.width() as i64, sheet.height() as i64);
    for (place, letter) in text.chars().enumerate() {
        let letter = if letter == '\u{a0}' { ' ' } else { letter };
        let Some(raster) = get_raster(letter, weight, height).or_else(|| get_raster('?', weight, height)) else {
            continue;
        };
        for (row, line) in raster.rows().enumerate() {
            for (column, shade) in line.iter().enumerate() {
                let (px, py) = (left.round() as i64 + (place * step + column) as i64, top.round() as i64 + row as i64);
                if *shade > 0 && (0..columns).contains(&px) && (0..rows).contains(&py) {
                    blend(sheet, (py * columns + px) as usize, ink, f32::from(*shade) / 255.0);
                }
            }
        }
    }
}

/// The sheet is opaque, so mixing needs no alpha.
fn blend(sheet: &mut Pixmap, place: usize, ink: Color, shade: f32) {
    let under = sheet.pixels()[place];
    let mix = |under: u8, over: f32| (f32::from(under) * (1.0 - shade) + over * 255.0 * shade).round() as u8;
    let mixed = tiny_skia::PremultipliedColorU8::from_rgba(
        mix(under.red(), ink.red()),
        mix(under.green(), ink.green()),
        mix(under.blue(), ink.blue()),
        255,
    );
    sheet.pixels_mut()[place] = mixed.expect("opaque");
}

fn paint(ink: Ink, opacity: f64) -> Paint<'static> {
    let mut color = color(ink);
    color.set_alpha(opacity as f32);
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color(color);
    paint
}

/// The light colours of `page.css`.
fn color(ink: Ink) -> Color {
    let rgb = match ink {
        Ink::Ground => 0xffffff,
        Ink::Text => 0x1f2328,
        Ink::Muted => 0x66707a,
        Ink::Grid => 0xe3e6e8,
        Ink::Series(which) => {
            [0x2f6f9f, 0xd08a2e, 0x3f8f7a, 0xb8574a, 0x7a68a6, 0x8a949c, 0xa9bccb][usize::from(which % 7)]
        }
        Ink::Bad => 0xb3261e,
        Ink::Heat(step) => {
            [0xeef3f6, 0xdce8ef, 0xc6dbe7, 0xadccde, 0x91bbd3, 0x73a8c6, 0x5493b7, 0x3a7da5, 0x26668e, 0x164d72]
                [usize::from(step.min(9))]
        }
    };
    Color::from_rgba8((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8, 255)
}
