//! Every command that a document, an alert or a deploy file shows is one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use clap::error::ErrorKind;

use super::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn markdown() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    for folder in ["docs", "examples/handlers", "examples/sql"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|kind| kind == "md")));
    }
    found
}

/// The words of each command in a line of shell: quotes taken away, comments and redirections left out.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars().peekable();
    let end = |word: &mut Option<String>, all: &mut Vec<Vec<String>>| {
        if let (Some(word), Some(last)) = (word.take(), all.last_mut()) {
            last.push(word);
        }
    };
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, '#') if word.is_none() => break,
            (None, '|' | '&' | ';') => {
                end(&mut word, &mut all);
                all.push(Vec::new());
            }
            (None, _) if c.is_whitespace() => end(&mut word, &mut all),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut all);
    for command in &mut all {
        if let Some(at) = command
            .iter()
            .position(|word| word.starts_with(['>', '<']) || word == "2>")
        {
            command.truncate(at);
        }
    }
    all
}

/// What our program is given, where it is the program: behind variables, and behind what runs it elsewhere.
fn arguments(words: &[String]) -> Option<&[String]> {
    let is_ours = |word: &String| word == "orgstream" || word.ends_with("/orgstream");
    let elsewhere = [
        "heroku run",
        "docker compose exec worker",
        "docker run --env-file .env orgstream",
    ];
    let behind = words.iter().take_while(|word| word.contains('=')).count();
    let words = &words[behind..];
    if words.first().is_some_and(is_ours) {
        return Some(&words[1..]);
    }
    for prefix in elsewhere {
        let length = prefix.split(' ').count();
        if words.len() > length && words[..length].join(" ") == prefix && is_ours(&words[length]) {
            return Some(&words[length + 1..]);
        }
    }
    let cargo = words.first().is_some_and(|word| word == "cargo") && words.get(1)? == "run";
    let at = words
        .iter()
        .position(|word| word == "--")
        .filter(|_| cargo)?;
    Some(&words[at + 1..])
}

fn refused(arguments: &[String]) -> Option<clap::Error> {
    let line = std::iter::once("orgstream").chain(arguments.iter().map(String::as_str));
    let error = Cli::try_parse_from(line).err()?;
    (!matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ))
    .then_some(error)
}

#[test]
fn words_are_told_apart_as_a_shell_does() {
    let line = "DATABASE_URL=a orgstream replay x --from '2h ago' | jq .a > b # c";
    let all = commands(line);
    assert_eq!(
        arguments(&all[0]).unwrap(),
        ["replay", "x", "--from", "2h ago"]
    );
    assert_eq!(all[1], ["jq", ".a"]);
    let behind = commands("heroku run orgstream status --json");
    assert_eq!(arguments(&behind[0]).unwrap(), ["status", "--json"]);
    assert_eq!(
        arguments(&commands("cargo run --release -- demo")[0]).unwrap(),
        ["demo"]
    );
    assert!(arguments(&commands("cat orgstream.toml")[0]).is_none());
    assert!(refused(&["status".to_owned(), "--no-such".to_owned()]).is_some());
}

/// Those in blocks, to be copied, have to be whole.
#[test]
fn every_command_in_a_block_of_a_document_can_be_run_as_it_stands() {
    let mut seen = 0;
    for document in markdown() {
        let text = fs::read_to_string(&document).unwrap().replace("\\\n", " ");
        for block in text.split("```sh\n").skip(1) {
            for line in block.split("```").next().unwrap().lines() {
                for words in commands(line) {
                    let Some(arguments) = arguments(&words) else {
                        continue;
                    };
                    if let Some(error) = refused(arguments) {
                        panic!("{}: {line}\n{error}", document.display());
                    }
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 20, "{seen}");
}

/// Those within a sentence may leave out what they need, and may stand for something; but there are such commands, and
/// they have such flags.
#[test]
fn every_command_in_a_sentence_exists() {
    let mut files = markdown();
    files.push(root().join("deploy/prometheus/orgstream.rules.yml"));
    files.push(root().join("CHANGELOG.md"));
    let mut seen = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        // Blocks are looked at elsewhere.
        for prose in text.split("```").step_by(2) {
            for quoted in prose.split('`').skip(1).step_by(2) {
                let line = quoted.replace(['\n', '…'], " ");
                let all = commands(&line);
                let Some(arguments) = all.first().and_then(|words| arguments(words)) else {
                    continue;
                };
                let kind = refused(arguments).map(|error| error.kind());
                let exists = !matches!(
                    kind,
                    Some(ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand)
                );
                assert!(exists, "{}: `{quoted}`: {kind:?}", file.display());
                seen.extend(arguments.first().cloned());
            }
        }
    }
    assert!(seen.len() > 12, "{seen:?}");
}

#[test]
fn every_process_of_a_host_runs_a_command_that_there_is() {
    let mut seen = 0;
    for file in [
        "Procfile",
        "deploy/orgstream.service",
        "deploy/orgstream-web.service",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let starts = text.lines().filter_map(|line| match file {
            "Procfile" => line.split_once(": ").map(|(_, command)| command),
            _ => line.strip_prefix("ExecStart="),
        });
        for line in starts {
            let words = commands(line).remove(0);
            let error = refused(arguments(&words).unwrap());
            assert!(error.is_none(), "{file}: {line}: {error:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 5);
}
