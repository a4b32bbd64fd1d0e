//! The mesh as a whole, as processes on loopback, where things go wrong: bad input, crashes, full disks, taken ports, backends
//! that misbehave, and a thousand changes under load.

mod bad_input;
mod changes;
mod disk;
mod faults;
mod garbage;
mod hello;
mod identity;
mod load;
mod not_processed;
mod outside;
mod ports;
mod restarts;
mod rotation;
mod servers;
mod skew;
mod tokens;
mod web;
