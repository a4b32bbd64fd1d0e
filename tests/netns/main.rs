//! Real capture: nftables REDIRECT in network namespaces of our own. Needs root; without it the suite fails, as a skip would hide.

mod capture;
mod kubernetes;
