use crate::groups::Group;

/// What is to be measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Few samples.
    pub quick: bool,
    /// Parts of the names of groups; all if there are none.
    pub names: Vec<String>,
}

impl Options {
    /// Reads the words after `--`.
    ///
    /// # Errors
    /// An option that there is not, or a name that no group has.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a String>) -> Result<Self, String> {
        let mut options = Self::default();
        for word in words {
            match word.as_str() {
                "--quick" => options.quick = true,
                option if option.starts_with('-') => {
                    return Err(format!(
                        "there is no option {option}: there are --quick and names of groups"
                    ));
                }
                name if Group::ALL.iter().any(|group| group.name().contains(name)) => {
                    options.names.push(name.to_owned());
                }
                name => {
                    let all: Vec<_> = Group::ALL.iter().map(|group| group.name()).collect();
                    return Err(format!("no group's name contains {name:?}: there are {}", all.join(", ")));
                }
            }
        }
        Ok(options)
    }

    /// Whether a group is to be measured.
    pub(crate) fn wants(&self, group: Group) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| group.name().contains(name.as_str()))
    }

    /// How many samples to take, of something that is usually sampled so often.
    pub(crate) fn samples(&self, usual: usize) -> usize {
        if self.quick { usual.div_ceil(10).clamp(2, 5) } else { usual }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_pick_groups_and_none_pick_all() {
        let all = parse(&[]).unwrap();
        let one = parse(&["creat", "--quick"]).unwrap();

        assert!(Group::ALL.iter().all(|group| all.wants(*group)));
        let picked: Vec<_> = Group::ALL.iter().filter(|group| one.wants(**group)).collect();
        assert_eq!((picked, one.quick), (vec![&Group::Create], true));
    }

    #[test]
    fn what_there_is_not_is_refused() {
        let (option, name) = (parse(&["--fast"]), parse(&["nonsense"]));

        assert!(option.unwrap_err().contains("--fast") && name.unwrap_err().contains("nonsense"));
    }

    #[test]
    fn quick_takes_few_samples_but_never_one() {
        let quick = Options { quick: true, names: Vec::new() };

        let counts = [1, 5, 30, 500].map(|usual| quick.samples(usual));
        assert_eq!(counts, [2, 2, 3, 5]);
    }
}
