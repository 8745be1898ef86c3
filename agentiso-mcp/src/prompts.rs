//! Prompts that clients offer to people.

use rmcp::{
    ErrorData,
    model::{GetPromptResult, JsonObject, Prompt, PromptArgument, PromptMessage, Role},
};

/// A prompt: its name, what it is for, its arguments (name, description, whether it is required) and its text, in which
/// `{name}` stands for an argument.
struct Template {
    name: &'static str,
    title: &'static str,
    description: &'static str,
    arguments: &'static [(&'static str, &'static str, bool)],
    text: &'static str,
}

const TEMPLATES: &[Template] = &[
    Template {
        name: "try-in-parallel",
        title: "Try several ways at once",
        description: "Fork a workspace, try a different approach in each fork, and keep the best.",
        arguments: &[
            ("task", "What is to be achieved", true),
            ("workspace", "The workspace to begin from; a new one if none is named", false),
            ("attempts", "How many approaches; 3 if not said", false),
        ],
        text: "Achieve this: {task}\n\nBegin from the workspace {workspace} (make one with workspace_create if there is \
            none). Bring it to the point where the approaches part, then fork it with workspace_fork into {attempts} \
            running copies. Try a different approach in each with exec or exec_parallel, compare the results with \
            workspace_diff, promote the best fork with workspace_promote, and destroy the others.",
    },
    Template {
        name: "safe-change",
        title: "Change something with a way back",
        description: "Take a snapshot, make a risky change, and go back if it fails.",
        arguments: &[("workspace", "The workspace", true), ("change", "What is to be changed", true)],
        text: "In the workspace {workspace}, do this: {change}\n\nTake a snapshot with memory first (snapshot, action \
            create). Make the change and check that everything works. If it does not, restore the snapshot and say what \
            went wrong. Delete the snapshot when the change is good.",
    },
];

/// What stands in the text for an argument that was not given.
const DEFAULTS: [(&str, &str); 2] = [("workspace", "(a new one)"), ("attempts", "3")];

/// The prompts there are.
pub(crate) fn list() -> Vec<Prompt> {
    TEMPLATES
        .iter()
        .map(|template| {
            let arguments = template.arguments.iter().map(|(name, description, required)| {
                PromptArgument::new(*name).with_description(*description).with_required(*required)
            });
            Prompt::new(template.name, Some(template.description), Some(arguments.collect()))
                .with_title(template.title)
        })
        .collect()
}

/// A prompt with its arguments filled in.
pub(crate) fn get(name: &str, arguments: &JsonObject) -> Result<GetPromptResult, ErrorData> {
    let wrong = |message: String| ErrorData::invalid_params(message, None);
    let template = TEMPLATES
        .iter()
        .find(|template| template.name == name)
        .ok_or_else(|| wrong(format!("there is no prompt {name:?}")))?;
    if let Some(unknown) =
        arguments.keys().find(|key| !template.arguments.iter().any(|(name, ..)| name == key))
    {
        return Err(wrong(format!("the prompt {name:?} has no argument {unknown:?}")));
    }
    let mut text = String::new();
    let mut rest = template.text;
    // Filled in from left to right: what an argument holds is never taken for a place of another one.
    while let Some((before, (key, after))) =
        rest.split_once('{').and_then(|(before, behind)| Some((before, behind.split_once('}')?)))
    {
        let given = match arguments.get(key) {
            Some(value) => {
                Some(value.as_str().ok_or_else(|| wrong(format!("the argument {key:?} is no string")))?)
            }
            None => None,
        };
        let default = DEFAULTS.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let value = given.or(default).ok_or_else(|| wrong(format!("the argument {key:?} is missing")))?;
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    let message = PromptMessage::new_text(Role::User, text);
    Ok(GetPromptResult::new(vec![message]).with_description(template.description))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(value: serde_json::Value) -> JsonObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_place_in_a_text_is_an_argument() {
        for template in TEMPLATES {
            let all: JsonObject =
                template.arguments.iter().map(|(name, ..)| ((*name).to_owned(), json!("{x}"))).collect();
            let text = json!(get(template.name, &all).unwrap()).to_string();
            assert_eq!(text.matches("{x}").count(), template.text.matches('{').count(), "{text}");
        }
    }

    #[test]
    fn missing_and_unknown_arguments_are_refused() {
        assert!(get("nope", &JsonObject::new()).is_err());
        assert!(get("try-in-parallel", &JsonObject::new()).is_err());
        assert!(get("try-in-parallel", &arguments(json!({"task": "t"}))).is_ok());
        assert!(get("try-in-parallel", &arguments(json!({"task": "t", "tsak": "u"}))).is_err());
        assert!(get("try-in-parallel", &arguments(json!({"task": 1}))).is_err());
    }
}
