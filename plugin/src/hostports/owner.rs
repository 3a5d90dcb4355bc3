//! How an element says whose it is. Pure.

use crate::attachment::Attachment;

/// `network/container/interface`. None of the names has a slash, and an attachment's alias, which
/// is longer, fits into 255 bytes.
pub(super) fn comment(attachment: &Attachment) -> String {
    let Attachment {
        network,
        container_id,
        ifname,
    } = attachment;
    format!("{network}/{container_id}/{ifname}")
}

/// The attachment that a comment names; None for one that names none.
pub(super) fn parse(comment: &str) -> Option<Attachment> {
    let mut names = comment.split('/');
    let attachment = Attachment {
        network: names.next()?.to_owned(),
        container_id: names.next()?.to_owned(),
        ifname: names.next()?.to_owned(),
    };
    names.next().is_none().then_some(attachment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_as_it_was_written() {
        let owner = Attachment::new("cbr0", "abc", "eth0").unwrap();
        assert_eq!(comment(&owner), "cbr0/abc/eth0");
        assert_eq!(parse("cbr0/abc/eth0"), Some(owner));
        for text in ["", "cbr0/abc", "a/b/c/d"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
