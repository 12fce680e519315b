//! Codecs: how a tensor travels.
