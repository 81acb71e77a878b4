//! A man page in the making: sections, paragraphs, and terms with what they mean.
//!
//! Text is plain, but for what stands between backquotes, which is shown bold as in every manual.

use roff::{Inline, Roff, bold, roman};

/// See the head of this file.
pub(crate) struct Page(Roff);

impl Page {
    /// `name(section)`, with its title line and `NAME`.
    pub(crate) fn new(name: &str, section: &str, about: &str) -> Page {
        let mut roff = Roff::new();
        let version = concat!("tlswarden ", env!("CARGO_PKG_VERSION"));
        roff.control("TH", [name, section, "", version, "Mail TLS policy and reports"]);
        // Names and values are not to be broken.
        roff.control("nh", []);
        roff.control("ad", ["l"]);
        let mut page = Page(roff);
        page.section("NAME");
        page.0.text([roman(format!("{name} - {about}"))]);
        page
    }

    /// A heading.
    pub(crate) fn section(&mut self, title: &str) {
        self.0.control("SH", [title]);
    }

    /// A heading below a heading.
    pub(crate) fn subsection(&mut self, title: &str) {
        self.0.control("SS", [title]);
    }

    /// A paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.0.control("PP", []);
        self.0.text(inline(text));
    }

    /// Lines that are kept as they are.
    pub(crate) fn verbatim(&mut self, text: &str) {
        self.0.control("PP", []);
        self.0.control("nf", []);
        for line in text.lines() {
            self.0.text([roman(line)]);
        }
        self.0.control("fi", []);
    }

    /// A term and what it means.
    pub(crate) fn term(&mut self, term: &str, meaning: &str) {
        self.0.control("TP", []);
        self.0.text([bold(term)]);
        self.0.text(inline(meaning));
    }

    /// The page, for `man`.
    pub(crate) fn render(self) -> String {
        self.0.render()
    }
}

fn inline(text: &str) -> Vec<Inline> {
    let part = |(n, part): (usize, &str)| if n % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().map(part).collect()
}
