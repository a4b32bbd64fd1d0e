//! An address, a rule and routes of the kernel's routing, over netlink: an image for sidecars need not hold `ip`.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use super::rules::Family;

/// `lo` has this index in every network namespace.
const LOOPBACK: u32 = 1;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE_NEW: u16 = 0x600;

const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;

const ERROR: u16 = 2;
const HEADER: usize = 16;

/// Something that `init` sets beside rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// An address of `lo`.
    Address(IpAddr),
    /// Packets with this mark take the way of this table.
    MarkRule(Family, u32, u32),
    /// In this table every address is a local one.
    LocalRoute(Family, u32),
}

impl Item {
    /// The command of `ip` that does the same.
    pub fn command(self) -> String {
        let version = |family| if family == Family::V4 { "-4" } else { "-6" };
        match self {
            Self::Address(address) => {
                let length = if address.is_ipv4() { 32 } else { 128 };
                format!("ip addr add {address}/{length} dev lo")
            }
            Self::MarkRule(family, mark, table) => {
                format!("ip {} rule add fwmark {mark} lookup {table}", version(family))
            }
            Self::LocalRoute(family, table) => {
                format!("ip {} route add local default dev lo table {table}", version(family))
            }
        }
    }

    /// Sets it; what is there already stays.
    pub fn set(self) -> Result<(), Errno> {
        match self.ask(0, CREATE_NEW) {
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes it; what isn't there is no error.
    pub fn remove(self) -> Result<(), Errno> {
        match self.ask(1, 0) {
            Err(
                Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP,
            ) => Ok(()),
            other => other,
        }
    }

    /// Types of requests come in rows: new, delete, get.
    fn ask(self, operation: u16, flags: u16) -> Result<(), Errno> {
        let (kind, body) = self.body();
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend_from_slice(&(kind + operation).to_ne_bytes());
        message.extend_from_slice(&(REQUEST | ACK | flags).to_ne_bytes());
        message.extend_from_slice(&1u32.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&body);
        send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
        acknowledged(&socket)
    }

    /// Type for "new", and what follows the header.
    fn body(self) -> (u16, Vec<u8>) {
        match self {
            Self::Address(address) => {
                let (family, octets) = match address {
                    IpAddr::V4(address) => (Family::V4, address.octets().to_vec()),
                    IpAddr::V6(address) => (Family::V6, address.octets().to_vec()),
                };
                let length = if address.is_ipv4() { 32 } else { 128 };
                // family, prefix length, flags, scope (host), index
                let mut body = vec![number(family), length, 0, 254];
                body.extend_from_slice(&LOOPBACK.to_ne_bytes());
                attribute(&mut body, 1, &octets);
                attribute(&mut body, 2, &octets);
                (NEW_ADDRESS, body)
            }
            Self::MarkRule(family, mark, table) => {
                // family, lengths of destination and source, tos, table, two unused, action (to a table), flags
                let mut body = vec![number(family), 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
                attribute(&mut body, 10, &mark.to_ne_bytes());
                attribute(&mut body, 16, &u32::MAX.to_ne_bytes());
                attribute(&mut body, 15, &table.to_ne_bytes());
                (NEW_RULE, body)
            }
            Self::LocalRoute(family, table) => {
                // family, lengths of destination and source, tos, table, protocol (boot), scope (host), type (local), flags
                let mut body = vec![number(family), 0, 0, 0, 0, 3, 254, 2, 0, 0, 0, 0];
                attribute(&mut body, 4, &LOOPBACK.to_ne_bytes());
                attribute(&mut body, 15, &table.to_ne_bytes());
                (NEW_ROUTE, body)
            }
        }
    }
}

/// AF_INET and AF_INET6.
fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Length, type, value; all of ours are multiples of four bytes long.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
}

/// The kernel's answer: an error message whose code is 0 where all is well.
fn acknowledged(socket: &OwnedFd) -> Result<(), Errno> {
    let mut answer = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(Errno::from_raw(-code)),
        _ => Err(Errno::EPROTO),
    }
}
