//! Every observable event.
