//! How often a peer started. In: a path. Out: a number higher than every one before, on the disk before it is used.

use std::{fs, io, path::Path};

use skein_protocol::Incarnation;

use super::{
    HomeError,
    file::{self, Reader},
};

pub(super) fn next(path: &Path) -> Result<Incarnation, HomeError> {
    let damaged = |why: &str| HomeError::Damaged { path: path.into(), why: why.into() };
    let last = match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map_err(|_| damaged("not a number"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(source) => return Err(HomeError::Denied { path: path.into(), source }),
    };
    let next = Incarnation::checked_add(last, 1).ok_or_else(|| damaged("no higher number is left"))?;
    file::write(path, format!("{next}\n").as_bytes(), Reader::Anyone)?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_higher_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("incarnation");
        assert_eq!([next(&path).unwrap(), next(&path).unwrap(), next(&path).unwrap()], [1, 2, 3]);
    }

    #[test]
    fn a_damaged_counter_never_starts_again_from_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("incarnation");
        for content in ["", "x", "-1", "4294967295"] {
            fs::write(&path, content).unwrap();
            assert!(matches!(next(&path), Err(HomeError::Damaged { .. })), "{content:?}");
        }
    }
}
