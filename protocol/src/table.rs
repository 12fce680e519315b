//! The keys that a text may have, in a table: path, kind, and whether it must be there. What a kind is says whose table it is.

#[derive(Clone, Copy, Debug)]
pub struct Key<K> {
    pub path: &'static str,
    pub kind: K,
    /// Must be there where its section is.
    pub need: bool,
}

pub const fn need<K: Copy>(path: &'static str, kind: K) -> Key<K> {
    Key { path, kind, need: true }
}

pub const fn may<K: Copy>(path: &'static str, kind: K) -> Key<K> {
    Key { path, kind, need: false }
}

pub fn find<K>(table: &'static [Key<K>], path: &str) -> Option<&'static Key<K>> {
    table.iter().find(|key| key.path == path)
}

/// Whether keys stand below `path`.
pub fn is_section<K>(table: &[Key<K>], path: &str) -> bool {
    table.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// All keys, and the sections above them.
pub fn paths<K>(table: &'static [Key<K>]) -> impl Iterator<Item = &'static str> {
    let sections = table.iter().flat_map(|key| key.path.match_indices('.').map(|(at, _)| &key.path[..at]));
    table.iter().map(|key| key.path).chain(sections)
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
