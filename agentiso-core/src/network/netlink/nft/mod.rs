//! Tables, sets and rules of nftables, put in force in one step.
//!
//! In the kernel's own messages (linux/netfilter/nf_tables.h), which it promises to understand for ever: no C library has to
//! be there, and nothing is `unsafe`.

mod batch;
pub(super) mod steps;
pub(super) mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
};

use self::batch::{Batch, Order};
pub(super) use self::steps::Step;
use self::wire::{Request, Subsystem, attribute, attributes, find, nested, number, text};

/// Elements that one message carries. A list of them has 64 KiB; an element with its attributes is below 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

// linux/netfilter/nf_tables.h
const GET_TABLE: u8 = 1;
const GET_SET_ELEMENTS: u8 = 13;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const LIST_ELEMENT: u16 = 1;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_ID: u16 = 10;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;

/// NFT_SET_MAP
const MAP: u32 = 1 << 3;

/// NF_ACCEPT
const ACCEPT: u32 = 1;

/// The kind of user data in which `nft` looks for a rule's comment.
const COMMENT: u8 = 0;

/// How a set is told from others: its table's family and its name.
pub(super) type SetName = (Family, &'static CStr);

/// What is in the sets: keys, and for maps their data.
pub(super) type Elements = BTreeMap<SetName, BTreeSet<(Vec<u8>, Vec<u8>)>>;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// Frames between the ports of a bridge.
    Bridge,
    /// IPv4 and IPv6 packets that the host receives, sends or forwards.
    Inet,
}

impl Family {
    /// `NFPROTO_*`.
    fn number(self) -> u8 {
        match self {
            Self::Bridge => 7,
            Self::Inet => 1,
        }
    }
}

/// What a chain that packets come to by themselves is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChainType {
    /// To let packets pass or not.
    Filter,
    /// To translate addresses; connections' first packets alone.
    Nat,
}

/// Where in the kernel packets come to a chain by themselves: `NF_INET_*`, and the same of bridges.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    PreRouting = 0,
    In = 1,
    Forward = 2,
    Out = 3,
    PostRouting = 4,
}

/// A set or a map.
#[derive(Debug)]
pub(super) struct SetPlan {
    pub(super) name: &'static CStr,
    /// What `nft` shows, and bytes.
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
}

/// A chain and its rules, each with what it is for.
#[derive(Debug)]
pub(super) struct ChainPlan {
    pub(super) name: &'static CStr,
    pub(super) hook: Option<(ChainType, Hook, i32)>,
    pub(super) rules: Vec<(&'static CStr, Vec<Step>)>,
}

/// A table.
#[derive(Debug)]
pub(super) struct TablePlan {
    pub(super) family: Family,
    pub(super) sets: Vec<SetPlan>,
    pub(super) chains: Vec<ChainPlan>,
}

/// Puts tables in force with these elements, in place of those of the same name. In one step: packets see either the
/// old or the new ones.
pub(super) fn replace(name: &CStr, tables: &[TablePlan], elements: &Elements) -> io::Result<()> {
    let mut batch = Batch::new();
    for plan in tables {
        let table = table(name);
        // Added first, so that removing it never fails.
        for order in [Order::NEW_TABLE, Order::REMOVE_TABLE, Order::NEW_TABLE] {
            batch.add(plan.family, order, &table);
        }
        for (id, set) in (1..).zip(&plan.sets) {
            batch.add(plan.family, Order::NEW_SET, &set.message(name, id));
        }
        for chain in &plan.chains {
            batch.add(plan.family, Order::NEW_CHAIN, &chain.message(name));
        }
        for chain in &plan.chains {
            for (purpose, steps) in &chain.rules {
                batch.add(plan.family, Order::NEW_RULE, &rule(name, chain.name, purpose, steps));
            }
        }
    }
    add_elements(&mut batch, name, elements, Order::NEW_ELEMENTS);
    batch.send().map_err(lacking)
}

fn table(name: &CStr) -> Vec<u8> {
    [text(TABLE_NAME, name), number(TABLE_FLAGS, 0)].concat()
}

impl SetPlan {
    fn message(&self, table: &CStr, id: u32) -> Vec<u8> {
        let mut parts = vec![
            text(SET_TABLE, table),
            text(SET_NAME, self.name),
            number(SET_KEY_TYPE, self.key.0),
            number(SET_KEY_LENGTH, self.key.1),
        ];
        if let Some((kind, length)) = self.data {
            parts.extend([
                number(SET_FLAGS, MAP),
                number(SET_DATA_TYPE, kind),
                number(SET_DATA_LENGTH, length),
            ]);
        }
        parts.push(number(SET_ID, id));
        parts.concat()
    }
}

impl ChainPlan {
    fn message(&self, table: &CStr) -> Vec<u8> {
        let mut parts = vec![text(CHAIN_TABLE, table), text(CHAIN_NAME, self.name)];
        if let Some((kind, hook, priority)) = self.hook {
            let kind = match kind {
                ChainType::Filter => c"filter",
                ChainType::Nat => c"nat",
            };
            let priority = attribute(HOOK_PRIORITY, &priority.to_be_bytes());
            parts.extend([
                nested(CHAIN_HOOK, &[number(HOOK_NUMBER, hook as u32), priority]),
                number(CHAIN_POLICY, ACCEPT),
                text(CHAIN_TYPE, kind),
            ]);
        }
        parts.concat()
    }
}

fn rule(table: &CStr, chain: &CStr, purpose: &CStr, steps: &[Step]) -> Vec<u8> {
    let step = |step: &Step| {
        let attributes = nested(EXPRESSION_DATA, std::slice::from_ref(&step.attributes));
        nested(LIST_ELEMENT, &[text(EXPRESSION_NAME, step.kind), attributes])
    };
    let comment = purpose.to_bytes_with_nul();
    // All purposes are short; one that were not would be cut off, and nothing else would be different.
    let comment = comment.get(..usize::from(u8::MAX)).unwrap_or(comment);
    let length = u8::try_from(comment.len()).unwrap_or(u8::MAX);
    [
        text(RULE_TABLE, table),
        text(RULE_CHAIN, chain),
        nested(RULE_EXPRESSIONS, &steps.iter().map(step).collect::<Vec<_>>()),
        attribute(RULE_USERDATA, &[&[COMMENT, length], comment].concat()),
    ]
    .concat()
}

/// The kernel refuses rules that need modules which it does not have and cannot load.
fn lacking(error: io::Error) -> io::Error {
    const MODULES: &str = "modprobe -a nft_chain_nat nft_ct nft_fib_inet nft_masq nft_nat nft_reject_inet";
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel lacks a part of nftables ({error}): load its modules: {MODULES}"),
        ),
        _ => error,
    }
}

/// Changes elements from one state to another, in one step.
///
/// # Errors
/// Also when the sets are not as `before` says, or not there: nothing is changed then.
pub(super) fn change(name: &CStr, before: &Elements, after: &Elements) -> io::Result<()> {
    let (gone, new) = (without(before, after), without(after, before));
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    add_elements(&mut batch, name, &gone, Order::REMOVE_ELEMENTS);
    add_elements(&mut batch, name, &new, Order::NEW_ELEMENTS);
    batch.send()
}

/// Removes the tables of this name. Those that are not there: no effect.
pub(super) fn remove(name: &CStr) -> io::Result<()> {
    let mut batch = Batch::new();
    for family in [Family::Bridge, Family::Inet] {
        batch.add(family, Order::NEW_TABLE, &table(name));
        batch.add(family, Order::REMOVE_TABLE, &table(name));
    }
    batch.send()
}

/// Whether both tables of this name are there.
pub(super) fn is_there(name: &CStr) -> io::Result<bool> {
    for family in [Family::Bridge, Family::Inet] {
        let question = Request { content: text(TABLE_NAME, name), ..ask(family, GET_TABLE) };
        match question.send() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            result => drop(result?),
        }
    }
    Ok(true)
}

/// The keys in the sets of this name, of all tables of the inet family whose names begin so.
pub(super) fn keys(tables: &str, set: &CStr) -> io::Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for table in (Request { dump: true, ..ask(Family::Inet, GET_TABLE) }).send()? {
        let Some(name) = find(&table, TABLE_NAME).filter(|name| name.starts_with(tables.as_bytes())) else {
            continue;
        };
        let content = [attribute(ELEMENTS_TABLE, name), text(ELEMENTS_SET, set)];
        let question =
            Request { dump: true, content: content.concat(), ..ask(Family::Inet, GET_SET_ELEMENTS) };
        let lists = match question.send() {
            // The table went meanwhile, or it is another one that happens to be named so.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            lists => lists?,
        };
        for list in lists {
            let elements = find(&list, ELEMENTS_LIST).into_iter().flat_map(attributes);
            let key = |(_, element)| find(find(element, ELEMENT_KEY)?, DATA_VALUE);
            keys.extend(elements.filter_map(key).map(<[u8]>::to_vec));
        }
    }
    Ok(keys)
}

fn ask(family: Family, message: u8) -> Request {
    Request {
        subsystem: Subsystem::Rules,
        message,
        family: family.number(),
        dump: false,
        content: Vec::new(),
    }
}

/// What one has and the other has not.
fn without(one: &Elements, other: &Elements) -> Elements {
    let none = BTreeSet::new();
    let difference = |(set, elements): (&SetName, &BTreeSet<_>)| {
        let elements = elements.difference(other.get(set).unwrap_or(&none)).cloned().collect();
        (*set, elements)
    };
    one.iter().map(difference).filter(|(_, elements): &(_, BTreeSet<_>)| !elements.is_empty()).collect()
}

fn add_elements(batch: &mut Batch, table: &CStr, elements: &Elements, order: Order) {
    let data = |kind, bytes: &[u8]| nested(kind, &[attribute(DATA_VALUE, bytes)]);
    for ((family, set), elements) in elements {
        let elements: Vec<_> = elements
            .iter()
            .map(|(key, value)| {
                let value = if value.is_empty() { Vec::new() } else { data(ELEMENT_DATA, value) };
                nested(LIST_ELEMENT, &[data(ELEMENT_KEY, key), value])
            })
            .collect();
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let parts = [text(ELEMENTS_TABLE, table), text(ELEMENTS_SET, set), nested(ELEMENTS_LIST, some)];
            batch.add(*family, order, &parts.concat());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_the_kernel_does_not_know_name_the_modules() {
        let of = |code| lacking(io::Error::from_raw_os_error(code));
        for code in [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT] {
            assert!(of(code).to_string().contains("modprobe -a nft_chain_nat"), "{code}");
        }
        assert_eq!(of(libc::ENOBUFS).raw_os_error(), Some(libc::ENOBUFS), "all else as it is");
    }
}
