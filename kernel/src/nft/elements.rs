//! Tables whose rules stay while the elements of their sets and maps come and go.

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::nftables::{
    DataAttribute, GenAttribute, GenMessage, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetFlags,
    SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nix::errno::Errno;

use super::lookup::Field;
use super::set::{Element, Set, Value};
use super::socket::{
    NFTABLES, Socket, comment_bytes, comment_of, message, message_with_id, new_chain, new_rule,
    words,
};
use super::table::{Family, Table};
use crate::attribute::{all, find};
use crate::error::Result;

const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
const NFNL_MSG_BATCH_BEGIN: u8 = 16;
const NFNL_BATCH_GENID: u16 = 1;
/// nft packs the types of a concatenation into one number, six bits each.
const DATATYPE_BITS: u32 = 6;
/// Elements per message: the attribute that holds them is at most 64 KiB long.
const ELEMENTS: usize = 100;

/// Elements to remove and to add, in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The ruleset's generation that the change was made for ([`Socket::generation`]); when it is
    /// another by now the answer is ERESTART and nothing is done. None: whatever it is.
    pub seen: Option<u32>,
    /// Set and key. One that is not there fails the transaction with ENOENT.
    pub remove: Vec<(String, Value)>,
    /// Set and element. A key that is there fails the transaction with EEXIST.
    pub add: Vec<(String, Element)>,
}

impl Socket {
    /// The number of the ruleset, which every committed transaction of anybody increases.
    pub fn generation(&mut self) -> Result<u32> {
        let query = NfTablesMessage::GetGen(GenMessage { attributes: vec![] });
        let query = message(NetfilterProtoFamily::Unspec, query);
        let describe = || "read the generation of nftables".to_owned();
        let answer = self.raw.get(&query).map_err(|f| f.into_error(describe))?;
        let id = answer.and_then(|answer: NetfilterMessage| match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(generation)) => {
                generation.attributes.iter().find_map(|a| match a {
                    GenAttribute::Id(id) => Some(*id),
                    _ => None,
                })
            }
            _ => None,
        });
        Ok(id.unwrap_or_default())
    }

    /// `nft list tables FAMILY`: their names.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>> {
        let query = NfTablesMessage::GetTable(TableMessage { attributes: vec![] });
        let describe = || format!("list nftables tables {}", family.name());
        self.dump_objects(family, query, &describe, |answer| match answer {
            NfTablesMessage::NewTable(table) => {
                table.attributes.into_iter().find_map(|a| match a {
                    TableAttribute::Name(name) => Some(name),
                    _ => None,
                })
            }
            _ => None,
        })
    }

    /// Makes the table, its sets, chains and rules where they are missing, and its rules anew
    /// where they differ. Elements stay. Two that do it at once do not disturb each other: each
    /// transaction leaves every rule there once.
    pub fn ensure(&mut self, table: &Table, sets: &[Set]) -> Result<()> {
        let name = TableMessage {
            attributes: vec![TableAttribute::Name(table.name.clone())],
        };
        let mut messages = vec![(NfTablesMessage::NewTable(name), NLM_F_CREATE)];
        messages.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
        let every_rule = RuleMessage {
            attributes: vec![RuleAttribute::Table(table.name.clone())],
        };
        messages.push((NfTablesMessage::DeleteRule(every_rule), 0));
        messages.extend(
            sets.iter()
                .zip(1..)
                .map(|(set, id)| new_set(table, set, id)),
        );
        for chain in &table.chains {
            for rule in &chain.rules {
                messages.push((new_rule(table, chain, rule), NLM_F_CREATE | NLM_F_APPEND));
            }
        }
        self.transaction(table.family, messages)
            .map_err(|failure| failure.into_error(|| words("write", table.family, &table.name)))
    }

    /// `nft list set|map`: its elements. None if there is no such set, or no such table.
    pub fn elements(&mut self, family: Family, table: &str, set: &str) -> Result<Vec<Element>> {
        let query = NfTablesMessage::GetSetElement(SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(set.to_owned()),
            ],
        });
        let describe = || format!("{} set {set}", words("read", family, table));
        let lists = self.dump_bytes(family, query, &describe, |message| {
            let list = find(message, NFTA_SET_ELEM_LIST_ELEMENTS)?;
            let elements = all(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM);
            Some(elements.filter_map(|(_, e)| parse(e)).collect::<Vec<_>>())
        })?;
        Ok(lists.concat())
    }

    /// Removes and adds elements, all or nothing.
    pub fn change(&mut self, family: Family, table: &str, change: &Change) -> Result<()> {
        let mut messages = vec![];
        for (set, elements) in by_set(&change.remove) {
            let elements = elements.into_iter().map(|key| keyed(key, vec![]));
            let list = element_list(table, set, elements.collect());
            messages.push((NfTablesMessage::DeleteSetElement(list), 0));
        }
        for (set, elements) in by_set(&change.add) {
            let elements = elements.into_iter().map(attributes_of);
            let list = element_list(table, set, elements.collect());
            // Without EXCL a key that is there with the same value would keep its owner's comment.
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            messages.push((NfTablesMessage::NewSetElement(list), flags));
        }
        if messages.is_empty() {
            return Ok(());
        }
        let begin = match change.seen {
            None => ControlMessage::BatchBegin,
            Some(generation) => ControlMessage::Other {
                message_type: NFNL_MSG_BATCH_BEGIN,
                attributes: vec![DefaultNla::new(
                    NFNL_BATCH_GENID,
                    generation.to_be_bytes().to_vec(),
                )],
            },
        };
        let [begin, end] = [begin, ControlMessage::BatchEnd]
            .map(|end| message_with_id(NetfilterProtoFamily::Unspec, end, NFTABLES));
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(inner, flags)| (message(family.protocol(), inner), flags))
            .collect();
        self.raw
            .exchange_between(&begin, &messages, &end)
            .map_err(|failure| {
                failure.into_error(|| format!("{}: elements", words("change", family, table)))
            })
    }
}

impl Change {
    /// Whether a failed change is to be made again from what is there by now: somebody else was
    /// faster.
    pub fn was_overtaken(error: &crate::Error) -> bool {
        let signs = [Errno::ERESTART, Errno::EEXIST, Errno::ENOENT, Errno::EBUSY];
        error.errno().is_some_and(|errno| signs.contains(&errno))
    }
}

/// Neighbours of the same set go into one message.
fn by_set<T>(list: &[(String, T)]) -> Vec<(&str, Vec<&T>)> {
    let mut groups: Vec<(&str, Vec<&T>)> = vec![];
    for (set, item) in list {
        match groups.last_mut() {
            Some((last, items)) if last == set && items.len() < ELEMENTS => items.push(item),
            _ => groups.push((set, vec![item])),
        }
    }
    groups
}

fn element_list(
    table: &str,
    set: &str,
    elements: Vec<ListAttribute<SetElementAttribute>>,
) -> SetElementMessage {
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(elements),
        ],
    }
}

fn keyed(key: &Value, mut more: Vec<SetElementAttribute>) -> ListAttribute<SetElementAttribute> {
    let key = SetElementAttribute::Key(DataAttribute::Value(key.0.clone()));
    more.insert(0, key);
    ListAttribute::Element(more)
}

fn attributes_of(element: &Element) -> ListAttribute<SetElementAttribute> {
    let mut attributes = vec![];
    if element.data != Value::new() {
        let data = DataAttribute::Value(element.data.0.clone());
        attributes.push(SetElementAttribute::Data(data));
    }
    if !element.comment.is_empty() {
        let bytes = comment_bytes(&element.comment);
        attributes.push(SetElementAttribute::UserData(bytes));
    }
    keyed(&element.key, attributes)
}

fn parse(element: &[u8]) -> Option<Element> {
    let value = |kind| {
        let data = find(element, kind)?;
        Some(Value(find(data, NFTA_DATA_VALUE)?.to_vec()))
    };
    let comment = find(element, NFTA_SET_ELEM_USERDATA).and_then(comment_of);
    let key = value(NFTA_SET_ELEM_KEY)?;
    (key != Value::new()).then(|| Element {
        key,
        data: value(NFTA_SET_ELEM_DATA).unwrap_or_else(Value::new),
        comment: comment.unwrap_or_default(),
    })
}

fn new_set(table: &Table, set: &Set, id: u32) -> (NfTablesMessage, u16) {
    let length = |fields: &[Field]| fields.iter().map(|f| f.len()).sum::<u32>();
    let datatype = |fields: &[Field]| {
        let pack = |all: u32, field: &Field| (all << DATATYPE_BITS) | field.datatype();
        fields.iter().fold(0, pack)
    };
    let mut attributes = vec![
        SetAttribute::Table(table.name.clone()),
        SetAttribute::Name(set.name.clone()),
        SetAttribute::Flags(match set.data.is_empty() {
            true => SetFlags::empty(),
            false => SetFlags::Map,
        }),
        SetAttribute::KeyType(datatype(&set.key)),
        SetAttribute::KeyLen(length(&set.key)),
        SetAttribute::Id(id),
    ];
    if !set.data.is_empty() {
        attributes.push(SetAttribute::DataType(datatype(&set.data)));
        attributes.push(SetAttribute::DataLen(length(&set.data)));
    }
    let message = NfTablesMessage::NewSet(SetMessage { attributes });
    (message, NLM_F_CREATE)
}
