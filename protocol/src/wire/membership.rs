//! Signed items of membership.
