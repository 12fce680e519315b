//! How numbers are written for people: three digits that matter, a blank between thousands, and words where there is no number.
//! In: numbers with their unit in the name. Out: text. Nothing here knows what is measured.

/// What stands where a number is not known.
pub const UNKNOWN: &str = "not known";

/// Whole numbers with a blank between thousands: `18 400`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Three digits that matter: `18 400`, `912`, `91.3`, `0.0123`; whole numbers without a point.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.into();
    }
    let size = value.abs();
    let sign = if value < 0.0 { "-" } else { "" };
    if size < 999.5 && size == size.round() {
        if size == 0.0 { "0".into() } else { format!("{sign}{size:.0}") }
    } else if size >= 1e15 {
        format!("{sign}{size:.2e}")
    } else if size >= 999.5 {
        let mut step = 1.0;
        while size / step >= 999.5 {
            step *= 10.0;
        }
        format!("{sign}{}", count(((size / step).round() * step) as u64))
    } else if size >= 99.95 {
        format!("{sign}{size:.0}")
    } else if size >= 9.995 {
        format!("{sign}{size:.1}")
    } else if size >= 0.9995 {
        format!("{sign}{size:.2}")
    } else if size >= 0.0995 {
        format!("{sign}{size:.3}")
    } else if size >= 0.001 {
        format!("{sign}{size:.4}")
    } else {
        format!("{sign}{size:.1e}")
    }
}

/// With a letter for the size: `1.30 B`, `397 M`, `18.4 k`.
pub fn short(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.into();
    }
    let size = value.abs();
    match size {
        _ if size >= 999.5e9 => format!("{} T", figure(value / 1e12)),
        _ if size >= 999.5e6 => format!("{} B", figure(value / 1e9)),
        _ if size >= 999.5e3 => format!("{} M", figure(value / 1e6)),
        _ if size >= 999.5 => format!("{} k", figure(value / 1e3)),
        _ => figure(value),
    }
}

/// Decimal bytes, as links are sold: `8.40 GB`.
pub fn bytes(value: f64) -> String {
    if !value.is_finite() {
        return UNKNOWN.into();
    }
    match value.abs() {
        size if size >= 999.5e12 => format!("{} PB", figure(value / 1e15)),
        size if size >= 999.5e9 => format!("{} TB", figure(value / 1e12)),
        size if size >= 999.5e6 => format!("{} GB", figure(value / 1e9)),
        size if size >= 999.5e3 => format!("{} MB", figure(value / 1e6)),
        size if size >= 999.5 => format!("{} kB", figure(value / 1e3)),
        _ => format!("{} B", figure(value)),
    }
}

/// A part of 1 in percent: `91.3 %`; what is small but not nothing is never written as nothing.
pub fn percent(part: f64) -> String {
    if !part.is_finite() {
        return UNKNOWN.into();
    }
    let hundred = part * 100.0;
    if hundred == 0.0 || hundred.abs() >= 99.95 {
        format!("{hundred:.0} %")
    } else if hundred.abs() < 0.05 {
        "below 0.1 %".into()
    } else {
        format!("{hundred:.1} %")
    }
}

/// The two largest units: `6 h`, `41 min 10 s`, `850 ms`.
pub fn span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return UNKNOWN.into();
    }
    if seconds.abs() < 1.0 {
        return if seconds == 0.0 { "0 s".into() } else { format!("{} ms", figure(seconds * 1e3)) };
    }
    if seconds < 60.0 {
        return format!("{} s", figure(seconds));
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{large} {large_unit}") } else { format!("{large} {large_unit} {small} {small_unit}") }
    };
    if days > 0 {
        pair(days, "d", hours, "h")
    } else if hours > 0 {
        pair(hours, "h", minutes, "min")
    } else {
        pair(minutes, "min", rest, "s")
    }
}

/// Hours, minutes and seconds of the simulated clock: `00:41:10`.
pub fn clock(seconds: f64) -> String {
    if !seconds.is_finite() {
        return UNKNOWN.into();
    }
    let whole = seconds.max(0.0).round() as u64;
    format!("{:02}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
}

/// `1 peer`, `3 peers`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits_that_matter() {
        let cases = [
            (18_432.0, "18 400"),
            (912.4, "912"),
            (91.34, "91.3"),
            (9.996, "10.0"),
            (0.5, "0.500"),
            (-12.34, "-12.3"),
            (31.0, "31"),
            (0.0, "0"),
            (1e-9, "1.0e-9"),
            (999.7, "1 000"),
            (f64::NAN, UNKNOWN),
        ];
        for (value, text) in cases {
            assert_eq!(figure(value), text, "{value}");
        }
    }

    #[test]
    fn times_are_two_units_and_parts_are_never_rounded_to_nothing() {
        assert_eq!(span(21_600.0), "6 h");
        assert_eq!(span(2_470.0), "41 min 10 s");
        assert_eq!(span(0.85), "850 ms");
        assert_eq!(clock(2_470.0), "00:41:10");
        assert_eq!(percent(0.0001), "below 0.1 %");
        assert_eq!(percent(0.913), "91.3 %");
        assert_eq!(bytes(8.4e9), "8.40 GB");
        assert_eq!(short(1.3e9), "1.30 B");
    }
}
