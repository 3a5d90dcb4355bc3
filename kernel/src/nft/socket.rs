//! Writing a table in one transaction, and reading back what is there.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::expression::Rule;
use super::table::{Chain, Family, Table};
use crate::attribute::find;
use crate::error::Result;
use crate::socket::{Failure, HEADER, Raw};

/// The subsystem a batch belongs to (`NFNL_SUBSYS_NFTABLES`), in the header of its ends.
pub(super) const NFTABLES: u16 = 10;
const NFNETLINK_V0: u8 = 0;
const NETFILTER_HEADER: usize = 4;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
const NFT_RULE_COMMENT: u8 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_TABLE_DORMANT: u32 = 1;

/// A netlink socket for nftables, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    pub(crate) raw: Raw,
}

#[cfg(feature = "monitor")]
impl Socket {
    /// See [`Raw::port`].
    pub(crate) fn port(&mut self) -> std::io::Result<u32> {
        self.raw.port()
    }
}

/// What was found of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// Its chains, in the kernel's order.
    pub chains: Vec<PresentChain>,
    /// Switched off (`flags dormant`).
    pub dormant: bool,
}

/// What was found of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PresentChain {
    /// Its name.
    pub name: String,
    /// Type, hook number and priority of a base chain.
    pub hook: Option<(String, u32, i32)>,
    /// The comments of its rules, in order; empty for a rule without one.
    pub comments: Vec<String>,
    /// A base chain whose policy is not accept.
    pub drops: bool,
}

impl Present {
    /// Whether this is the table wanted, rule for rule.
    pub fn is(&self, wanted: &Table) -> bool {
        let same = |(found, chain): (&PresentChain, &Chain)| {
            let comments = chain.rules.iter().map(|rule| rule.comment());
            found.name == chain.name
                && !found.drops
                && found.hook
                    == chain
                        .hook
                        .map(|hook| hook_key(&hook.attributes(), hook.type_name()))
                && found.comments.iter().map(String::as_str).eq(comments)
        };
        !self.dormant
            && self.chains.len() == wanted.chains.len()
            && self.chains.iter().zip(&wanted.chains).all(same)
    }
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Socket> {
        Raw::open(NETLINK_NETFILTER).map(|raw| Socket { raw })
    }

    /// Makes the table exactly this, in one transaction: packets see the old or the new, never
    /// half of one. `nft 'add table T; delete table T; table T { … }'`.
    pub fn replace(&mut self, table: &Table) -> Result<()> {
        let name = || TableMessage {
            attributes: vec![TableAttribute::Name(table.name.clone())],
        };
        let mut messages = vec![
            (NfTablesMessage::NewTable(name()), NLM_F_CREATE),
            (NfTablesMessage::DeleteTable(name()), 0),
            (NfTablesMessage::NewTable(name()), NLM_F_CREATE),
        ];
        messages.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
        for chain in &table.chains {
            messages.extend(chain.rules.iter().map(|rule| {
                let message = new_rule(table, chain, rule);
                (message, NLM_F_CREATE | NLM_F_APPEND)
            }));
        }
        self.transaction(table.family, messages)
            .map_err(|failure| failure.into_error(|| words("write", table.family, &table.name)))
    }

    /// `nft delete table`. One that is gone already is deleted.
    pub fn delete(&mut self, family: Family, name: &str) -> Result<()> {
        let table = TableMessage {
            attributes: vec![TableAttribute::Name(name.to_owned())],
        };
        let result = self
            .transaction(family, vec![(NfTablesMessage::DeleteTable(table), 0)])
            .map_err(|failure| failure.into_error(|| words("delete", family, name)));
        crate::error::unless(result, &[Errno::ENOENT])
    }

    /// `nft list table`, as far as needed to recognise it. None if there is none.
    pub fn dump(&mut self, family: Family, name: &str) -> Result<Option<Present>> {
        let describe = || words("read", family, name);
        let ours = |table: &str| table == name;
        let all = TableMessage { attributes: vec![] };
        let found = self.dump_objects(
            family,
            NfTablesMessage::GetTable(all),
            &describe,
            |message| match message {
                NfTablesMessage::NewTable(table) => table_of(&table).filter(|(n, _)| ours(n)),
                _ => None,
            },
        )?;
        let Some((_, dormant)) = found.into_iter().next() else {
            return Ok(None);
        };
        let all = ChainMessage { attributes: vec![] };
        let mut chains = self.dump_objects(
            family,
            NfTablesMessage::GetChain(all),
            &describe,
            |message| match message {
                NfTablesMessage::NewChain(chain) => {
                    chain_of(&chain).filter(|(table, _)| ours(table))
                }
                _ => None,
            },
        )?;
        for (chain, comment) in self.comments(family, name)? {
            let owner = chains.iter_mut().find(|(_, c)| c.name == chain);
            if let Some((_, found)) = owner {
                found.comments.push(comment);
            }
        }
        let chains = chains.into_iter().map(|(_, chain)| chain).collect();
        Ok(Some(Present { chains, dormant }))
    }

    /// The chain and the comment of each rule of a table. What else is in a rule is most of its
    /// bytes, and decoding it most of the time that this would take.
    fn comments(&mut self, family: Family, table: &str) -> Result<Vec<(String, String)>> {
        let only_here = RuleMessage {
            attributes: vec![RuleAttribute::Table(table.to_owned())],
        };
        let describe = || words("read", family, table);
        let query = NfTablesMessage::GetRule(only_here);
        self.dump_bytes(family, query, &describe, |rule| {
            let text = |kind| find(rule, kind).map(text_of);
            let ours = text(NFTA_RULE_TABLE).is_some_and(|name| name == table);
            let comment = find(rule, NFTA_RULE_USERDATA).and_then(comment_of);
            ours.then_some((text(NFTA_RULE_CHAIN)?, comment.unwrap_or_default()))
        })
    }

    /// Like [`Socket::dump_objects`] for `keep` that reads the attributes' bytes itself.
    pub(super) fn dump_bytes<T>(
        &mut self,
        family: Family,
        query: NfTablesMessage,
        describe: &dyn Fn() -> String,
        mut keep: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let query = message(family.protocol(), query);
        let result = self.raw.dump_answers(&query, describe, |answer| {
            let body = &answer.bytes[HEADER..];
            let (header, attributes) = body.split_at_checked(NETFILTER_HEADER)?;
            let ours = header[0] == u8::from(family.protocol());
            ours.then(|| keep(attributes)).flatten()
        });
        match result {
            // The table went away between two dumps.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            result => result,
        }
    }

    pub(super) fn dump_objects<T>(
        &mut self,
        family: Family,
        query: NfTablesMessage,
        describe: &dyn Fn() -> String,
        mut keep: impl FnMut(NfTablesMessage) -> Option<T>,
    ) -> Result<Vec<T>> {
        let query = message(family.protocol(), query);
        let result = self.raw.dump(&query, describe, |answer: NetfilterMessage| {
            // Some kernels send every family's objects.
            if answer.header.family != family.protocol() {
                return None;
            }
            match answer.inner {
                NetfilterMessageInner::NfTables(inner) => keep(inner),
                _ => None,
            }
        });
        match result {
            // The table went away between two dumps.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(Vec::new()),
            result => result,
        }
    }

    /// All or nothing. The kernel answers each failed message; before Linux 6.10 it acknowledges
    /// neither end of a batch, so it is the last message between them that asks for an answer.
    pub(super) fn transaction(
        &mut self,
        family: Family,
        messages: Vec<(NfTablesMessage, u16)>,
    ) -> std::result::Result<(), Failure> {
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(inner, flags)| (message(family.protocol(), inner), flags))
            .collect();
        let [begin, end] = [ControlMessage::BatchBegin, ControlMessage::BatchEnd]
            .map(|end| message_with_id(NetfilterProtoFamily::Unspec, end, NFTABLES));
        self.raw.exchange_between(&begin, &messages, &end)
    }
}

/// A text attribute without its NUL.
pub(super) fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

pub(super) fn message(family: NetfilterProtoFamily, inner: NfTablesMessage) -> NetfilterMessage {
    message_with_id(family, inner, 0)
}

pub(super) fn message_with_id(
    family: NetfilterProtoFamily,
    inner: impl Into<NetfilterMessageInner>,
    id: u16,
) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, NFNETLINK_V0, id), inner)
}

pub(super) fn words(verb: &str, family: Family, name: &str) -> String {
    format!("{verb} nftables table {} {name}", family.name())
}

pub(super) fn new_chain(table: &Table, chain: &Chain) -> (NfTablesMessage, u16) {
    let mut attributes = vec![
        ChainAttribute::Table(table.name.clone()),
        ChainAttribute::Name(chain.name.clone()),
    ];
    if let Some(hook) = chain.hook {
        attributes.extend([
            ChainAttribute::Hook(hook.attributes()),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(hook.type_name().to_owned()),
        ]);
    }
    let message = NfTablesMessage::NewChain(ChainMessage { attributes });
    (message, NLM_F_CREATE)
}

pub(super) fn new_rule(table: &Table, chain: &Chain, rule: &Rule) -> NfTablesMessage {
    let attributes = vec![
        RuleAttribute::Table(table.name.clone()),
        RuleAttribute::Chain(chain.name.clone()),
        RuleAttribute::Expressions(rule.expressions.clone()),
        RuleAttribute::UserData(comment_bytes(&rule.comment)),
    ];
    NfTablesMessage::NewRule(RuleMessage { attributes })
}

/// libnftnl's userdata: type, length, text with a NUL behind it.
pub(super) fn comment_bytes(text: &str) -> Vec<u8> {
    let mut bytes = vec![NFT_RULE_COMMENT, text.len() as u8 + 1];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}

pub(super) fn comment_of(mut bytes: &[u8]) -> Option<String> {
    loop {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        if kind == NFT_RULE_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        bytes = &bytes[2 + length..];
    }
}

fn table_of(table: &TableMessage) -> Option<(String, bool)> {
    let (mut name, mut dormant) = (None, false);
    for attribute in &table.attributes {
        match attribute {
            TableAttribute::Name(text) => name = Some(text.clone()),
            TableAttribute::Flags(flags) => {
                dormant = flags.contains(TableFlags::from_bits_retain(NFT_TABLE_DORMANT));
            }
            _ => {}
        }
    }
    Some((name?, dormant))
}

pub(super) fn chain_of(message: &ChainMessage) -> Option<(String, PresentChain)> {
    let mut chain = PresentChain::default();
    let (mut table, mut hook, mut kind) = (None, None, "");
    for attribute in &message.attributes {
        match attribute {
            ChainAttribute::Table(name) => table = Some(name.clone()),
            ChainAttribute::Name(name) => chain.name.clone_from(name),
            ChainAttribute::Hook(attributes) => hook = Some(attributes),
            ChainAttribute::Type(name) => kind = name,
            ChainAttribute::Policy(policy) => chain.drops = *policy != NF_ACCEPT,
            _ => {}
        }
    }
    chain.hook = hook.map(|attributes| hook_key(attributes, kind));
    Some((table?, chain))
}

fn hook_key(
    attributes: &[netlink_packet_netfilter::nftables::Hook],
    kind: &str,
) -> (String, u32, i32) {
    use netlink_packet_netfilter::nftables::Hook;
    let (mut number, mut priority) = (0, 0);
    for attribute in attributes {
        match attribute {
            Hook::Number(n) => number = u32::from(*n),
            Hook::Priority(p) => priority = *p as i32,
            _ => {}
        }
    }
    (kind.to_owned(), number, priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_read_as_it_was_written_whatever_stands_before_it() {
        let mut bytes = vec![7, 2, 1, 1];
        bytes.extend(comment_bytes("pods out #01234567"));
        assert_eq!(comment_of(&bytes).unwrap(), "pods out #01234567");
        assert_eq!(comment_of(&[]), None);
        assert_eq!(comment_of(&[0, 9, 1]), None);
    }
}
