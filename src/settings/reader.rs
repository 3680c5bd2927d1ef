//! Declares and reads settings, and collects the errors of invalid values.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::redact_password;
use crate::access::Rate;

pub(super) const HOUR_MS: u64 = 3_600_000;

/// The declaration of a setting.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    /// None: unset by default.
    pub(super) default: Option<String>,
    help: &'static str,
    /// Such as `1 to 1000`.
    pub(super) bounds: Option<String>,
    /// The value may contain a password, which is not shown.
    secret: bool,
    /// The heading in `--help`; that of [`SettingsReader::section`].
    pub(super) section: &'static str,
}

impl Setting {
    pub(super) fn new(name: &'static str, default: impl Into<String>, help: &'static str) -> Self {
        Self { default: Some(default.into()), ..Self::optional(name, help) }
    }

    /// A setting that is unset by default.
    pub(super) fn optional(name: &'static str, help: &'static str) -> Self {
        Self { name, default: None, help, bounds: None, secret: false, section: "" }
    }

    pub(super) fn bounds(self, bounds: impl Into<String>) -> Self {
        Self { bounds: Some(bounds.into()), ..self }
    }

    /// Removes the password from the value in errors and in the effective settings.
    pub(super) fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// The text of `--help`.
    pub(super) fn help(&self) -> String {
        match &self.bounds {
            Some(bounds) => format!("{} [{bounds}]", self.help),
            None => self.help.to_owned(),
        }
    }
}

/// Each method declares a setting and returns its value. If the value is invalid, the method
/// records an error and returns the default.
///
/// Without sources, every value is the default, and `Settings::read` only collects the
/// declarations. Each setting must therefore be read unconditionally.
#[derive(Default)]
pub(super) struct SettingsReader<'a> {
    pub(super) matches: Option<&'a ArgMatches>,
    /// The values of the `--env-file`.
    pub(super) file: HashMap<String, String>,
    /// In the order of the calls, which is the order of `--help`.
    pub(super) declared: Vec<Setting>,
    /// Every setting as `NAME=value`, without passwords.
    pub(super) effective: Vec<String>,
    pub(super) errors: Vec<String>,
    /// The heading of the next declarations.
    pub(super) section: &'static str,
}

impl SettingsReader<'_> {
    /// Begins a section: the settings that are declared from now on have this heading in `--help`.
    pub(super) fn section(&mut self, heading: &'static str) -> &mut Self {
        self.section = heading;
        self
    }

    /// Returns the value parsed by `parse`, whose error describes the expected form.
    pub(super) fn read<T>(&mut self, setting: Setting, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let setting = Setting { section: self.section, ..setting };
        let name = setting.name;
        let default = setting.default.as_deref().unwrap_or_default();
        let text = self.given(name).unwrap_or_else(|| default.to_owned());
        let shown = if setting.secret { redact_password(&text) } else { text.clone() };
        let value = parse(&text).unwrap_or_else(|wanted| {
            self.errors.push(format!("{name}={shown:?} is not {wanted}"));
            parse(default).unwrap_or_else(|wanted| panic!("BUG: the default of {name} is not {wanted}"))
        });
        self.effective.push(format!("{name}={shown}"));
        self.declared.push(setting);
        value
    }

    /// The flag, else the environment variable, else the line of the file.
    fn given(&self, name: &str) -> Option<String> {
        let matches = self.matches.filter(|matches| {
            matches!(matches.value_source(name), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        });
        let given = matches.and_then(|matches| matches.get_one::<String>(name));
        given.or_else(|| self.file.get(name)).cloned()
    }

    pub(super) fn number<T: TryFrom<u64>>(
        &mut self,
        name: &'static str,
        default: u64,
        bounds: RangeInclusive<u64>,
        help: &'static str,
    ) -> T {
        let range = format!("{} to {}", bounds.start(), bounds.end());
        let wanted = format!("a whole number from {range}");
        self.read(Setting::new(name, default.to_string(), help).bounds(range), |text| {
            let number = text.parse().ok().filter(|number| bounds.contains(number));
            number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| wanted.clone())
        })
    }

    pub(super) fn millis(
        &mut self,
        name: &'static str,
        default: u64,
        bounds: RangeInclusive<u64>,
        help: &'static str,
    ) -> Duration {
        Duration::from_millis(self.number(name, default, bounds, help))
    }

    pub(super) fn rate(&mut self, name: &'static str, default: u64, help: &'static str) -> Option<Rate> {
        Rate::per_second(self.number(name, default, 0..=1_000_000, help))
    }

    pub(super) fn text(&mut self, name: &'static str, default: &str, help: &'static str) -> String {
        self.read(Setting::new(name, default, help), |text| Ok(text.to_owned()))
    }

    /// Returns None if the setting is unset or empty.
    pub(super) fn optional(&mut self, setting: Setting) -> Option<String> {
        self.read(setting, |text| Ok(Some(text.to_owned()).filter(|text| !text.is_empty())))
    }

    pub(super) fn parsed<T: FromStr>(
        &mut self,
        name: &'static str,
        default: &str,
        wanted: &str,
        help: &'static str,
    ) -> T {
        self.read(Setting::new(name, default, help), |text| {
            text.parse().map_err(|_why: T::Err| wanted.to_owned())
        })
    }

    /// A value whose parse error describes the expected form.
    pub(super) fn described<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &'static str,
        default: &str,
        help: &'static str,
    ) -> T {
        self.read(Setting::new(name, default, help), |text| {
            text.parse().map_err(|wanted: T::Err| wanted.to_string())
        })
    }

    /// A comma-separated list, by default empty, whose parse error describes the expected form.
    pub(super) fn list<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &'static str,
        help: &'static str,
    ) -> T {
        self.described(name, "", help)
    }

    /// One of `choices`; the first is the default.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
        help: &'static str,
    ) -> T {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let wanted = format!("one of {}", words.join(", "));
        self.read(Setting::new(name, words[0], help), |text| {
            let choice = choices.iter().find(|(word, _)| *word == text);
            choice.map(|(_, choice)| *choice).ok_or_else(|| wanted.clone())
        })
    }
}
