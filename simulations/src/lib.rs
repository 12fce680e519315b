//! Thousands of the same peer under virtual time.
