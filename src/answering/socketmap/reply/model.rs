//! A model of how Postfix reads an answer (its mystrtokq, extpar and split_nameval): for tests and fuzzing alone.
//!
//! Takes: what follows `OK `. Gives: level and attributes, or the complaint with which Postfix would defer the mail.

/// Level, then attributes in order, their names in lower case.
pub(super) type ParsedAnswer = (String, Vec<(String, String)>);

/// Reads an answer as Postfix does.
pub(super) fn postfix(text: &str) -> Result<ParsedAnswer, String> {
    let mut tokens = Vec::new();
    let mut token = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | ' ' | '\t' | '\r' | '\n' if depth == 0 => {
                tokens.extend((!token.is_empty()).then(|| std::mem::take(&mut token)));
                continue;
            }
            _ => {}
        }
        token.push(c);
    }
    tokens.extend((!token.is_empty()).then_some(token));
    let mut tokens = tokens.into_iter();
    let level = tokens.next().ok_or("empty")?;
    let mut attributes = Vec::new();
    for token in tokens {
        let inside = match token.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(format!("missing brace: {token}"))?.trim().to_owned(),
            None => token,
        };
        let (name, value) = inside.split_once('=').ok_or(format!("missing '=': {inside}"))?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        if name.is_empty() || name.contains(' ') {
            return Err(format!("bad name: {inside}"));
        }
        attributes.push((name, value));
    }
    Ok((level, attributes))
}

/// Whether Postfix takes the attributes at the level; `newer` is 3.10 or later.
pub(super) fn accepted(level: &str, attributes: &[(String, String)], newer: bool) -> Result<(), String> {
    let count = |name: &str| attributes.iter().filter(|(n, _)| n == name).count();
    let hostname = |value: &str| {
        !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    for (name, value) in attributes {
        match name.as_str() {
            "match" if matches!(level, "verify" | "secure") && !value.is_empty() => {}
            "servername" if count(name) == 1 && hostname(value) => {}
            "policy_type" if newer && count(name) == 1 && value == "sts" => {}
            "policy_domain" if newer && count(name) == 1 && hostname(value) => {}
            "policy_string" | "mx_host_pattern" if newer && count("policy_type") == 1 => {}
            _ => return Err(format!("{level}: {name}={value}")),
        }
    }
    Ok(())
}
