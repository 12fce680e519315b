//! Frames: what peers say to each other.
