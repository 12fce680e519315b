//! How a peer is connected, as a person writes it: `20mbit/100mbit,15ms,0.5%`.

use std::{fmt, str::FromStr, time::Duration};

/// A peer's way to the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits a second, headers included.
    pub up: u64,
    pub down: u64,
    /// One way to the middle of the net: two peers are the sum of theirs apart.
    pub delay: Duration,
    /// Part of its datagrams that are lost by chance, in either direction.
    pub loss: f64,
}

/// Why words are no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no link: rates up and down and a delay one way are wanted, and what is lost if anything, as 20mbit/100mbit,15ms,0.5%"
)]
pub struct NoLink(String);

impl FromStr for Link {
    type Err = NoLink;

    fn from_str(text: &str) -> Result<Link, NoLink> {
        let bad = || NoLink(text.into());
        let number = |word: &str, unit: &str, most: f64| -> Result<f64, NoLink> {
            let value = word.trim().strip_suffix(unit).and_then(|value| value.trim().parse::<f64>().ok());
            value.filter(|value| (0.0..=most).contains(value)).ok_or_else(bad)
        };
        let mut parts = text.split(',');
        let rates = parts.next().ok_or_else(bad)?;
        let (up, down) = rates.split_once('/').unwrap_or((rates, rates));
        let rate =
            |word: &str| number(word, "mbit", 1e5).and_then(|rate| if rate > 0.0 { Ok(rate) } else { Err(bad()) });
        let (up, down) = (rate(up)?, rate(down)?);
        let ms = number(parts.next().ok_or_else(bad)?, "ms", 1e4)?;
        let loss = parts.next().map_or(Ok(0.0), |part| number(part, "%", 100.0))?;
        if parts.next().is_some() {
            return Err(bad());
        }
        let bits = |mbit: f64| (mbit * 1e6) as u64;
        Ok(Link { up: bits(up), down: bits(down), delay: Duration::from_secs_f64(ms / 1e3), loss: loss / 100.0 })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [up, down] = [self.up, self.down].map(|bits| bits as f64 / 1e6);
        write!(f, "{up}mbit/{down}mbit,{}ms", self.delay.as_secs_f64() * 1e3)?;
        if self.loss > 0.0 { write!(f, ",{}%", self.loss * 100.0) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_as_it_is_said() {
        let link: Link = "20mbit/100mbit,15ms,0.5%".parse().expect("a link");
        let wanted = Link { up: 20_000_000, down: 100_000_000, delay: Duration::from_millis(15), loss: 0.005 };
        assert_eq!(link, wanted);
        assert_eq!(link.to_string(), "20mbit/100mbit,15ms,0.5%");
        assert_eq!("8.5mbit,20ms".parse::<Link>().expect("a link").to_string(), "8.5mbit/8.5mbit,20ms");
        for bad in
            ["", "20mbit", "20/20,1ms", "0mbit,1ms", "1mbit,1ms,101%", "1mbit,-1ms", "1mbit,1ms,1%,1", "nanmbit,1ms"]
        {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }
}
