//! Rules that other programs made, found by comment or by the chain they jump to, and deleted one
//! by one: their tables are not ours to replace.

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};
use nix::errno::Errno;

use super::socket::{
    NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_RULE_USERDATA, Socket, chain_of, comment_of, message,
    text_of, words,
};
use super::table::Family;
use crate::attribute::{all, find};
use crate::error::{Result, unless};
use crate::socket::Failure;

/// The forward hook's number (`NF_INET_FORWARD`).
const NF_INET_FORWARD: u32 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// A rule of somebody else's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRule {
    /// Its chain.
    pub chain: String,
    /// Its number in its table.
    pub handle: u64,
    /// nft's comment; empty without one. iptables' comments are something else.
    pub comment: String,
    /// The chain that its verdict jumps or goes to.
    pub target: Option<String>,
}

impl Socket {
    /// `nft list chain`: whether there is such a chain.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool> {
        let query = NfTablesMessage::GetChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(table.to_owned()),
                ChainAttribute::Name(chain.to_owned()),
            ],
        });
        match self.raw.get(&message(family.protocol(), query)) {
            Ok(_) => Ok(true),
            Err(Failure::Refused {
                errno: Errno::ENOENT,
                ..
            }) => Ok(false),
            Err(failure) => Err(failure.into_error(|| words("read", family, table))),
        }
    }

    /// Chains that drop what no rule of theirs accepts among the packets forwarded through this
    /// host, such as Docker's FORWARD, as `family table chain`. An accept in another table does
    /// not help against them: every base chain of a hook is asked.
    pub fn forward_drops(&mut self) -> Result<Vec<String>> {
        let mut drops = Vec::new();
        for family in [Family::Inet, Family::Ipv4, Family::Ipv6] {
            let all = NfTablesMessage::GetChain(ChainMessage { attributes: vec![] });
            let describe = || format!("read nftables chains of family {}", family.name());
            drops.extend(self.dump_objects(family, all, &describe, |answer| {
                let NfTablesMessage::NewChain(chain) = answer else {
                    return None;
                };
                let (table, chain) = chain_of(&chain)?;
                let (kind, point, _) = chain.hook?;
                let drops = chain.drops && kind == "filter" && point == NF_INET_FORWARD;
                drops.then(|| format!("{} {table} {}", family.name(), chain.name))
            })?);
        }
        Ok(drops)
    }

    /// `nft -a list chain`: its rules; of the whole table without a chain. None are found where
    /// there is no such chain or table.
    pub fn foreign_rules(
        &mut self,
        family: Family,
        table: &str,
        chain: Option<&str>,
    ) -> Result<Vec<ForeignRule>> {
        let mut attributes = vec![RuleAttribute::Table(table.to_owned())];
        attributes.extend(chain.map(|chain| RuleAttribute::Chain(chain.to_owned())));
        let query = NfTablesMessage::GetRule(RuleMessage { attributes });
        let describe = || words("read", family, table);
        self.dump_bytes(family, query, &describe, |rule| parse(rule, table))
    }

    /// `nft delete rule` for each, then `nft flush chain` for each chain, then `nft delete chain`,
    /// in one transaction. What is gone already is deleted.
    pub fn delete_foreign(
        &mut self,
        family: Family,
        table: &str,
        rules: &[ForeignRule],
        chains: &[&str],
    ) -> Result<()> {
        let rule = |chain: &str, handle: Option<u64>| {
            let mut attributes = vec![
                RuleAttribute::Table(table.to_owned()),
                RuleAttribute::Chain(chain.to_owned()),
            ];
            attributes.extend(handle.map(RuleAttribute::Handle));
            NfTablesMessage::DeleteRule(RuleMessage { attributes })
        };
        let mut messages: Vec<_> = rules
            .iter()
            .map(|r| (rule(&r.chain, Some(r.handle)), 0))
            .collect();
        // All are emptied first: they may lead to each other.
        messages.extend(chains.iter().map(|chain| (rule(chain, None), 0)));
        messages.extend(chains.iter().map(|chain| {
            let attributes = vec![
                ChainAttribute::Table(table.to_owned()),
                ChainAttribute::Name((*chain).to_owned()),
            ];
            (NfTablesMessage::DeleteChain(ChainMessage { attributes }), 0)
        }));
        if messages.is_empty() {
            return Ok(());
        }
        let done = self
            .transaction(family, messages)
            .map_err(|failure| failure.into_error(|| words("delete rules of", family, table)));
        unless(done, &[Errno::ENOENT])
    }
}

fn parse(rule: &[u8], wanted: &str) -> Option<ForeignRule> {
    let text = |kind| find(rule, kind).map(text_of);
    if text(NFTA_RULE_TABLE)? != wanted {
        return None;
    }
    let handle = find(rule, NFTA_RULE_HANDLE)?.try_into().ok()?;
    let comment = find(rule, NFTA_RULE_USERDATA).and_then(comment_of);
    let expressions = find(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    Some(ForeignRule {
        chain: text(NFTA_RULE_CHAIN)?,
        handle: u64::from_be_bytes(handle),
        comment: comment.unwrap_or_default(),
        target: all(expressions).find_map(|(_, expression)| jumps_to(expression)),
    })
}

/// The chain that an expression (`immediate`, with a verdict) jumps or goes to.
fn jumps_to(expression: &[u8]) -> Option<String> {
    if text_of(find(expression, NFTA_EXPR_NAME)?) != "immediate" {
        return None;
    }
    let loads = find(expression, NFTA_EXPR_DATA)?;
    let verdict = find(find(loads, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    find(verdict, NFTA_VERDICT_CHAIN).map(text_of)
}
