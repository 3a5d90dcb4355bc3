//! `resolv.conf`, as far as a result's `dns` can say it. Pure.

use crate::result::Dns;

/// Reads the text: comments, lines with no argument and unknown keywords are passed over.
pub(crate) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else {
            continue;
        };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.push(first),
            "domain" => dns.domain = first,
            "search" => dns.search.extend(std::iter::once(first).chain(words)),
            "options" => dns.options.extend(std::iter::once(first).chain(words)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_keyword_is_kept_in_order() {
        let dns = super::parse(
            "# c\n; c\nnameserver 10.0.0.1 x\n nameserver 10.0.0.2\nsearch\nsearch a b\nsearch c\ndomain d\noptions ndots:5 timeout:1\nfoo bar\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(dns.search, ["a", "b", "c"]);
        assert_eq!(dns.options, ["ndots:5", "timeout:1"]);
        assert_eq!(dns.domain, "d");
    }
}
