//! Chat templates: message lists to the text a chat model was trained on (Jinja, as in `tokenizer_config.json`).

use crate::ModelError;

/// Renders `messages` (role, content) through `template`, without a generation prompt.
pub fn render(template: &str, messages: &[(String, String)], bos: &str, eos: &str) -> Result<String, ModelError> {
    let _ = (template, messages, bos, eos);
    todo!("gguf helper")
}
