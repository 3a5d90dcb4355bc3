//! Rules added one by one to a table that other programs write too, in their format: a rule is
//! recognised by its comment as it stands, and nobody's rules are replaced but the table's own.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
};

use super::expression::Rule;
use super::socket::{Socket, comment_bytes, new_chain, words};
use super::table::{Chain, Table};
use crate::error::Result;

impl Rule {
    /// The same rule with exactly this comment, at most 253 bytes; none if it is empty.
    pub fn commented(mut self, comment: &str) -> Rule {
        self.comment = comment.to_owned();
        self
    }
}

impl Socket {
    /// Makes the table and its chains where they are missing, writes the rules of those chains
    /// anew that come with any, and appends `rules` to the chain named beside each. One
    /// transaction.
    pub fn append(&mut self, table: &Table, rules: &[(&str, Rule)]) -> Result<()> {
        let name = TableMessage {
            attributes: vec![TableAttribute::Name(table.name.clone())],
        };
        let mut messages = vec![(NfTablesMessage::NewTable(name), NLM_F_CREATE)];
        messages.extend(table.chains.iter().map(|chain| new_chain(table, chain)));
        let add = NLM_F_CREATE | NLM_F_APPEND;
        for Chain { name, rules, .. } in table.chains.iter().filter(|c| !c.rules.is_empty()) {
            let every_rule = RuleMessage {
                attributes: address(table, name),
            };
            messages.push((NfTablesMessage::DeleteRule(every_rule), 0));
            messages.extend(rules.iter().map(|rule| (new_rule(table, name, rule), add)));
        }
        messages.extend(
            rules
                .iter()
                .map(|(chain, rule)| (new_rule(table, chain, rule), add)),
        );
        self.transaction(table.family, messages)
            .map_err(|failure| failure.into_error(|| words("write", table.family, &table.name)))
    }
}

fn address(table: &Table, chain: &str) -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Table(table.name.clone()),
        RuleAttribute::Chain(chain.to_owned()),
    ]
}

fn new_rule(table: &Table, chain: &str, rule: &Rule) -> NfTablesMessage {
    let mut attributes = address(table, chain);
    attributes.push(RuleAttribute::Expressions(rule.expressions.clone()));
    if !rule.comment.is_empty() {
        attributes.push(RuleAttribute::UserData(comment_bytes(&rule.comment)));
    }
    NfTablesMessage::NewRule(RuleMessage { attributes })
}
