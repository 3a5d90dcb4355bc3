//! Whose a reservation is, as its file says it. Pure.

/// Whose a reservation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner<'a> {
    /// CNI_CONTAINERID.
    pub(crate) container_id: &'a str,
    /// CNI_IFNAME.
    pub(crate) ifname: &'a str,
}

impl Owner<'_> {
    pub(super) fn content(&self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }

    pub(super) fn held(&self) -> Held {
        Held::By(self.container_id.to_owned(), self.ifname.to_owned())
    }
}

/// What a reservation's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// By this container's interface.
    By(String, String),
    /// By this container, in a file of an old host-local, which wrote no interface.
    ByContainer(String),
}

impl Held {
    /// White space around the content does not count; the separator inside must be exact.
    pub(super) fn parse(content: &str) -> Option<Held> {
        let content = content.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if content.is_empty() {
            return None;
        }
        Some(match content.split_once("\r\n") {
            Some((id, ifname)) => Held::By(id.to_owned(), ifname.to_owned()),
            None => Held::ByContainer(content.to_owned()),
        })
    }

    /// Whether the reservation is the owner's; a legacy one is every interface's.
    pub(crate) fn is(&self, owner: &Owner<'_>) -> bool {
        match self {
            Held::By(id, ifname) => id == owner.container_id && ifname == owner.ifname,
            Held::ByContainer(id) => id == owner.container_id,
        }
    }
}
