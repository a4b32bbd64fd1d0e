//! From "something changed" to "this stream has something to send".
//!
//! [`debounce`] waits for quiet and merges; [`fanout`] puts one merged request into the mailbox of every connection that
//! the change can concern. A mailbox holds zero or one request, so a slow client costs one pending push however much changes.

pub mod debounce;
