//! What becomes of a query, and the answers that are made here.

use std::net::IpAddr;

use hickory_resolver::proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::directory::{Directory, Lookup};
use crate::on_demand::{Answer, HostAddresses};

/// How long an answer from here holds, in seconds.
const TTL: u32 = 30;
/// Bytes of the head of a message.
const HEAD: usize = 12;
/// The biggest datagram that is sent, whatever a client can take: fragments get lost.
const BIGGEST_DATAGRAM: u16 = 4096;
/// What a client that says nothing can take (RFC 1035).
const SMALLEST_DATAGRAM: u16 = 512;

/// What to do about bytes that came.
#[derive(Debug)]
pub(super) enum Query {
    /// Nothing: not a query.
    Drop,
    /// Answer this at once.
    Refuse(Box<Message>),
    /// Look this host up, and forward the query where the mesh doesn't know it.
    LookUp(Box<Message>),
    /// Forward it.
    Forward(Box<Message>),
}

/// Where a host is, for an answer.
#[derive(Debug)]
pub(super) enum Decision {
    /// In the mesh; under this name, where it is another than the one asked for.
    Known(std::sync::Arc<HostAddresses>, Option<Name>),
    /// Others may know.
    Forward,
    /// It can't be told now.
    Fail,
}

/// Reads a query.
pub(super) fn read(bytes: &[u8]) -> Query {
    let message = match Message::from_vec(bytes) {
        Ok(message) => message,
        Err(_) => {
            // Enough came to tell who is to hear what, and it is no answer.
            let [high, low, flags, ..] = *bytes else { return Query::Drop };
            if bytes.len() < HEAD || flags & 0x80 != 0 {
                return Query::Drop;
            }
            let id = u16::from_be_bytes([high, low]);
            return Query::Refuse(Box::new(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)));
        }
    };
    if message.metadata.message_type == MessageType::Response {
        return Query::Drop;
    }
    if message.metadata.op_code != OpCode::Query {
        return Query::Refuse(Box::new(failure(&message, ResponseCode::NotImp)));
    }
    match &message.queries[..] {
        [] => Query::Refuse(Box::new(failure(&message, ResponseCode::ServFail))),
        [query] => {
            let address = matches!(query.query_type(), RecordType::A | RecordType::AAAA);
            match address && query.query_class() == DNSClass::IN {
                true => Query::LookUp(Box::new(message)),
                false => Query::Forward(Box::new(message)),
            }
        }
        // Nobody asks so, and nobody answers it.
        _ => Query::Refuse(Box::new(failure(&message, ResponseCode::FormErr))),
    }
}

/// Looks up the host that is asked for, and where the mesh doesn't know it, what a resolver has put the first search domain behind:
/// that saves it the other domains.
pub(super) async fn decide(directory: &Directory, name: &Name, search: Option<&Name>) -> Decision {
    let host = text(name);
    let first = match directory.get(&host) {
        Lookup::Known(addresses) => return Decision::Known(addresses, None),
        Lookup::Unready => return Decision::Fail,
        other => other,
    };
    let shorter = search.and_then(|search| without(name, search));
    let second = |shorter: &Name| directory.get(&text(shorter));
    // Both are asked for at once where the second one is likely to be needed.
    let early = shorter.as_ref().filter(|name| name.num_labels() > 1).map(second);
    match settle(first).await {
        Answer::Known(addresses) => return Decision::Known(addresses, None),
        Answer::Silent if directory.is_of_cluster(&host) => return Decision::Fail,
        Answer::Silent => return Decision::Forward,
        Answer::Absent => {}
    }
    let Some(shorter) = shorter else { return Decision::Forward };
    match settle(early.unwrap_or_else(|| second(&shorter))).await {
        Answer::Known(addresses) => Decision::Known(addresses, Some(shorter)),
        Answer::Absent | Answer::Silent => Decision::Forward,
    }
}

async fn settle(found: Lookup) -> Answer<std::sync::Arc<HostAddresses>> {
    match found {
        Lookup::Known(addresses) => Answer::Known(addresses),
        Lookup::Absent => Answer::Absent,
        Lookup::Unready => Answer::Silent,
        Lookup::Wait(wait) => wait.answer().await,
    }
}

/// A name as hosts are written: lower-cased, without its final dot.
fn text(name: &Name) -> String {
    let mut text = name.to_ascii();
    text.make_ascii_lowercase();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

/// `name` without `domain` behind it, if there is something left.
fn without(name: &Name, domain: &Name) -> Option<Name> {
    let left = name.num_labels().checked_sub(domain.num_labels()).filter(|left| *left > 0)?;
    if !domain.zone_of(name) {
        return None;
    }
    let mut shorter = Name::from_labels(name.iter().take(usize::from(left))).ok()?;
    shorter.set_fqdn(true);
    Some(shorter)
}

/// The answer for a host of the mesh: those of its addresses that are of the family asked for. None is an answer too.
pub(super) fn known(query: &Message, addresses: &HostAddresses, canonical: Option<Name>) -> Message {
    let mut answer = reply(query);
    answer.metadata.authoritative = true;
    let Some(asked) = query.queries.first() else { return answer };
    let mut records: Vec<RData> = addresses
        .0
        .iter()
        .filter_map(|address| match (address, asked.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        })
        .collect();
    if !records.is_empty() {
        // Many clients take the first.
        let first = rand::random::<u32>() as usize % records.len();
        records.rotate_left(first);
    }
    let owner = canonical.as_ref().unwrap_or(asked.name()).clone();
    if let Some(canonical) = canonical {
        answer.add_answer(Record::from_rdata(asked.name().clone(), TTL, RData::CNAME(CNAME(canonical))));
    }
    answer.add_answers(records.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data)));
    answer
}

/// An answer without anything but a code.
pub(super) fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut answer = reply(query);
    answer.metadata.response_code = code;
    answer
}

fn reply(query: &Message) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(BIGGEST_DATAGRAM);
        answer.set_edns(edns);
    }
    answer
}

/// The biggest datagram that whoever asks can take.
pub(super) fn datagram_limit(query: &Message) -> usize {
    usize::from(query.max_payload().clamp(SMALLEST_DATAGRAM, BIGGEST_DATAGRAM))
}

/// An answer as bytes; where that is more than `limit`, with nothing in it but the mark that there is more over TCP.
pub(super) fn encode(answer: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    answer.truncate().to_vec().ok()
}
