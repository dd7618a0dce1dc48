//! Columns of a table with the names of the clips and their captions.

use super::super::dataset::Config;
use super::super::reason::Reason;
use super::table::Table;

#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    Clip,
    Caption,
}

/// The chosen column of a table, with other candidates.
pub(super) struct Chosen {
    pub place: usize,
    pub note: Option<String>,
}

impl Column {
    /// Usual names, in order of preference.
    fn usual(self) -> &'static [&'static str] {
        match self {
            Column::Clip => &[
                "file_name",
                "video",
                "path",
                "video_path",
                "file_path",
                "filename",
                "file",
                "media_path",
                "image",
            ],
            Column::Caption => &["text", "caption", "prompt", "description"],
        }
    }

    fn what(self) -> &'static str {
        match self {
            Column::Clip => "names of the clips",
            Column::Caption => "captions",
        }
    }

    /// Returns the config key that names the column, and its value.
    fn configured(self, config: &Config) -> (&'static str, Option<&str>) {
        match self {
            Column::Clip => ("video_column", config.video_column.as_deref()),
            Column::Caption => ("caption_column", config.caption_column.as_deref()),
        }
    }

    /// Checks whether a column of this name is a candidate.
    pub fn may_be(self, name: &str, config: &Config) -> bool {
        match self.configured(config).1 {
            Some(configured) => name.eq_ignore_ascii_case(configured),
            None => self.usual().iter().any(|u| name.eq_ignore_ascii_case(u)),
        }
    }

    /// Finds the column that the config names, or else the first of the usual ones.
    pub fn find(self, table: &Table, config: &Config) -> Result<Chosen, Reason> {
        let (key, configured) = self.configured(config);
        let columns = &table.columns;
        let places = |name: &str| {
            let same = |place: &usize| columns[*place].eq_ignore_ascii_case(name);
            (0..columns.len()).filter(same).collect::<Vec<_>>()
        };
        let what = self.what();
        let mut found = match configured {
            Some(name) => places(name),
            None => self.usual().iter().flat_map(|name| places(name)).collect(),
        };
        if let Some(exact) = found
            .iter()
            .position(|&place| Some(columns[place].as_str()) == configured)
        {
            found = vec![found[exact]];
        }
        let Some((&place, others)) = found.split_first() else {
            let wanted = configured.map_or(what.to_owned(), |name| format!("{what}, `{name}`"));
            let found = columns.iter().chain(&table.unread).cloned().collect();
            return Err(Reason::NoColumn {
                wanted,
                found,
                choose_with: key,
            });
        };
        let taken = &columns[place];
        let others: Vec<_> = others.iter().map(|&other| format!("`{}`", columns[other])).collect();
        let note = format!(
            "the {what} are taken from `{taken}`, not from {}; `{key}` chooses another",
            others.join(", ")
        );
        Ok(Chosen {
            place,
            note: (!others.is_empty()).then_some(note),
        })
    }
}
