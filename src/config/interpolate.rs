//! `${VAR}`, `${VAR:-default}` and `$$` in the strings of a configuration file.

use super::env::Env;

/// A string with its variables filled in.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Interpolated {
    /// The text.
    pub(super) text: String,
    /// Variables that the text came from. Where there are any, the text may be a secret, and messages
    /// name the variables instead of repeating it.
    pub(super) variables: Vec<String>,
}

/// Why variables could not be filled in. Says nothing of any value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InterpolateError {
    /// `${VAR}` without a default, and no such variable.
    #[error(
        "the environment variable {name} is not set; set it, or write ${{{name}:-default}} to go without"
    )]
    Unset {
        /// Name of the variable.
        name: String,
    },
    /// `${` without `}`.
    #[error("a ${{ has no closing }}; write $$ for a plain dollar sign")]
    Unclosed,
    /// Between `${` and `}` stands something else.
    #[error(
        "between ${{ and }} there must be a variable's name (letters, digits and _), and after it at most :-default; write $$ for a plain dollar sign"
    )]
    Name,
    /// `${A:-${B}}`.
    #[error("the default of ${{{name}:-…}} cannot itself hold a variable")]
    Nested {
        /// Name of the outer variable.
        name: String,
    },
}

/// Fills in the variables of one string, once: what a variable holds is not looked through again. A
/// variable that is blank counts as not set. A `$` before anything but `{` and `$` stands for itself.
pub(super) fn interpolate(text: &str, env: &dyn Env) -> Result<Interpolated, InterpolateError> {
    let mut filled = Interpolated {
        text: String::with_capacity(text.len()),
        variables: Vec::new(),
    };
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        filled.text.push_str(before);
        if let Some(after) = from.strip_prefix("$$") {
            filled.text.push('$');
            rest = after;
        } else if let Some(after) = from.strip_prefix("${") {
            let (inside, after) = after.split_once('}').ok_or(InterpolateError::Unclosed)?;
            filled.text.push_str(&reference(inside, env)?);
            filled.variables.push(name_of(inside).to_owned());
            rest = after;
        } else {
            filled.text.push('$');
            rest = &from[1..];
        }
    }
    filled.text.push_str(rest);
    Ok(filled)
}

/// The value of what stands between `${` and `}`.
fn reference(inside: &str, env: &dyn Env) -> Result<String, InterpolateError> {
    let name = name_of(inside);
    let mut letters = name.bytes();
    let starts_well = letters
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !starts_well || !letters.all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(InterpolateError::Name);
    }
    let name = name.to_owned();
    let default = inside.split_once(":-").map(|(_, default)| default);
    if default.is_some_and(|default| default.contains("${")) {
        return Err(InterpolateError::Nested { name });
    }
    match (env.var(&name), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(InterpolateError::Unset { name }),
    }
}

fn name_of(inside: &str) -> &str {
    inside.split_once(":-").map_or(inside, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn env() -> BTreeMap<String, String> {
        [("HOST", "db"), ("BLANK", " "), ("TRICKY", "${HOST}$$")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn variables_and_defaults_are_filled_in_once() {
        for (text, filled) in [
            ("plain", "plain"),
            ("${HOST}", "db"),
            ("a-${HOST}-${NONE:-b}", "a-db-b"),
            ("${BLANK:-filled}", "filled"),
            ("${NONE:-}", ""),
            ("${NONE:-sqlite://x.db}", "sqlite://x.db"),
            ("$$ $5 $${HOST} $", "$ $5 ${HOST} $"),
            ("${TRICKY}", "${HOST}$$"),
        ] {
            assert_eq!(interpolate(text, &env()).unwrap().text, filled, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_says_why() {
        let unset = |name: &str| InterpolateError::Unset {
            name: name.to_owned(),
        };
        for (text, error) in [
            ("${NONE}", unset("NONE")),
            ("${BLANK}", unset("BLANK")),
            ("x ${HOST", InterpolateError::Unclosed),
            ("${}", InterpolateError::Name),
            ("${5X}", InterpolateError::Name),
            ("${HOST-x}", InterpolateError::Name),
            (
                "${NONE:-${HOST}}",
                InterpolateError::Nested {
                    name: "NONE".to_owned(),
                },
            ),
        ] {
            assert_eq!(
                interpolate(text, &env()).map(|filled| filled.text),
                Err(error),
                "{text}"
            );
        }
    }

    #[test]
    fn the_variables_a_text_came_from_are_remembered() {
        let filled = interpolate("${HOST}/${NONE:-x}", &env()).unwrap();
        assert_eq!(filled.variables, ["HOST", "NONE"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\$|\\{|\\}|:-|HOST|[^\\x00])*") {
            let _ = interpolate(&text, &env());
        }

        #[test]
        fn text_with_its_dollars_doubled_comes_out_as_it_was(text in "\\PC*") {
            let doubled = text.replace('$', "$$");
            prop_assert_eq!(interpolate(&doubled, &env()).unwrap().text, text);
        }
    }
}
