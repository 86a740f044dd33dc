//! LVM's text format (lvm.conf(5), and the metadata on disk): a tree of sections, strings, whole
//! numbers and lists. Only the grammar; what a VG looks like in it stands in `metadata`.

/// Deeper nesting than any VG has; more means that the text is not what it should be.
const DEPTH_MAX: usize = 16;

/// A value behind `=`, or an element of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `"text"`
    Text(String),
    /// `123`
    Number(i64),
    /// `["a", 1]`
    List(Vec<Value>),
}

/// What stands between braces, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// `key = value`
    pub values: Vec<(String, Value)>,
    /// `key { ... }`
    pub sections: Vec<(String, Section)>,
}

/// Where and why the text could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("LVM metadata, line {line}: {what}")]
pub struct TextError {
    line: usize,
    what: String,
}

impl Value {
    /// The text, when it is one.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::List(_) => None,
        }
    }

    /// The number, when it is one.
    #[must_use]
    pub const fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Text(_) | Self::List(_) => None,
        }
    }

    /// The elements, when it is a list.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Self]> {
        match self {
            Self::List(list) => Some(list),
            Self::Text(_) | Self::Number(_) => None,
        }
    }
}

impl Section {
    /// The first value of that name.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.values.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The first section of that name.
    #[must_use]
    pub fn section(&self, key: &str) -> Option<&Self> {
        self.sections.iter().find(|(k, _)| k == key).map(|(_, s)| s)
    }

    /// All texts of the list of that name; none when it is absent.
    pub fn texts(&self, key: &str) -> impl Iterator<Item = &str> {
        self.value(key)
            .and_then(Value::as_list)
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_text)
    }
}

/// Reads a whole text.
///
/// # Errors
/// When it does not follow the grammar.
pub fn parse(text: &str) -> Result<Section, TextError> {
    let mut reader = Reader { rest: text, line: 1 };
    let root = reader.section(0)?;
    Ok(root)
}

#[derive(Debug)]
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn error<T>(&self, what: impl Into<String>) -> Result<T, TextError> {
        Err(TextError { line: self.line, what: what.into() })
    }

    /// Skips blanks and `# comments`; the next character, if there is one.
    fn peek(&mut self) -> Option<char> {
        loop {
            let c = self.rest.chars().next()?;
            if c == '#' {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.rest = self.rest.get(end..).unwrap_or_default();
            } else if c.is_whitespace() {
                self.bump();
            } else {
                return Some(c);
            }
        }
    }

    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        if c == '\n' {
            self.line = self.line.saturating_add(1);
        }
        Some(c)
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or((self.rest, ""));
        self.rest = rest;
        word.to_owned()
    }

    /// The content of a section, with its closing brace unless it is the whole text.
    fn section(&mut self, depth: usize) -> Result<Section, TextError> {
        if depth > DEPTH_MAX {
            return self.error(format!("more than {DEPTH_MAX} sections inside each other"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return self.error("the text ends inside a section"),
                Some('}') if depth > 0 => {
                    self.bump();
                    return Ok(section);
                }
                Some(_) => self.item(&mut section, depth)?,
            }
        }
    }

    fn item(&mut self, section: &mut Section, depth: usize) -> Result<(), TextError> {
        let key = self.word(|c| c.is_ascii_alphanumeric() || "_.+-/".contains(c));
        if key.is_empty() {
            return self.error("expected a name");
        }
        match self.peek() {
            Some('{') => {
                self.bump();
                let inner = self.section(depth.saturating_add(1))?;
                section.sections.push((key, inner));
            }
            Some('=') => {
                self.bump();
                let value = self.value(depth)?;
                section.values.push((key, value));
            }
            _ => return self.error(format!("expected '=' or '{{' behind {key:?}")),
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Value, TextError> {
        if depth > DEPTH_MAX {
            return self.error(format!("more than {DEPTH_MAX} lists inside each other"));
        }
        match self.peek() {
            Some('"') => self.string().map(Value::Text),
            Some('[') => {
                self.bump();
                self.list(depth.saturating_add(1)).map(Value::List)
            }
            Some(c) if c.is_ascii_digit() || c == '-' => {
                let word = self.word(|c| c.is_ascii_digit() || c == '-');
                word.parse()
                    .map(Value::Number)
                    .or_else(|_| self.error(format!("{word:?} is not a whole number")))
            }
            _ => self.error("expected a string, a whole number or a list"),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, TextError> {
        let mut list = Vec::new();
        loop {
            match self.peek() {
                Some(']') => {
                    self.bump();
                    return Ok(list);
                }
                Some(',') if !list.is_empty() => {
                    self.bump();
                    if self.peek() == Some(']') {
                        return self.error("expected an element behind ','");
                    }
                    list.push(self.value(depth)?);
                }
                Some(_) if list.is_empty() => list.push(self.value(depth)?),
                _ => return self.error("expected ',' or ']'"),
            }
        }
    }

    fn string(&mut self) -> Result<String, TextError> {
        self.bump();
        let mut out = String::new();
        loop {
            match self.bump() {
                Some('"') => return Ok(out),
                Some('\\') => match self.bump() {
                    Some(c) => out.push(c),
                    None => return self.error("the text ends inside a string"),
                },
                Some(c) => out.push(c),
                None => return self.error("the text ends inside a string"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_lvm_writes() {
        let text = "# made by LVM2\ncontents = \"Text\"\tversion = 1\n vg_0.1+x {\n id = \"a\\\"b\" # why\n tags = [\"x\", \"y=1\"]\n empty = []\n s { stripes = [\n\"pv0\", 26\n] } }\n";
        let root = parse(text).unwrap();
        assert_eq!(root.value("version"), Some(&Value::Number(1)));
        let vg = root.section("vg_0.1+x").unwrap();
        assert_eq!(vg.value("id").and_then(Value::as_text), Some("a\"b"));
        assert_eq!(vg.texts("tags").collect::<Vec<_>>(), ["x", "y=1"]);
        assert_eq!(vg.value("empty"), Some(&Value::List(vec![])));
        let stripes = vg.section("s").unwrap().value("stripes").unwrap();
        assert_eq!(stripes, &Value::List(vec![Value::Text("pv0".to_owned()), Value::Number(26)]));
    }

    #[test]
    fn says_where_it_stops_to_make_sense() {
        for (text, line) in [
            ("a = ", 1),
            ("a {\n b = 1\n", 3),
            ("a = [1\n 2]", 2),
            ("a = [1,]", 1),
            ("\n\n= 1", 3),
            ("a 1", 1),
            ("a = \"x", 1),
            ("}", 1),
            ("a = 1-2", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
        assert!(parse(&"a {".repeat(100_000)).unwrap_err().what.contains("more than"));
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_ends(text in "[a-z0-9={}\\[\\]\",#\\\\ \n-]{0,200}") {
            drop(parse(&text));
        }
    }
}
