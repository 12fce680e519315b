//! Who is there, and agreeing on numbers without a leader.
