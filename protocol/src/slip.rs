//! How far a word is from another one: for answers to slips of the finger.

/// A known word that is further away than this is another word.
const NEAR: usize = 2;
/// Bytes of a word: nobody's slip is longer, and a distance takes time by the product of both lengths.
const WORD_MAX: usize = 64;

/// The known word that is at most two letters away.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > WORD_MAX {
        return None;
    }
    // Two letters of two are another word.
    let most = NEAR.min(word.chars().count().max(2) - 1);
    let close = known.into_iter().map(|near| (distance(word, near), near)).min();
    close.filter(|(distance, _)| *distance <= most).map(|(_, near)| near)
}

/// Letters to change, add or remove (Levenshtein). Takes time by the product of both lengths.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (corner + usize::from(x != *y)).min(above + 1).min(row[j] + 1);
            corner = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_two_letters_finds_its_word() {
        assert_eq!(nearest("chekc", ["check", "show"]), Some("check"));
        assert_eq!(nearest("dance", ["check", "show"]), None);
        assert_eq!(nearest("up", ["at", "down"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["xx"]), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
