"""What this room uses of transformers and huggingface_hub beyond their documented interfaces: names
with the parameters or attributes that they must have. `tests/test_compat.py` fails, by name, where
an upgrade has moved one."""

# "module:name" -> "(parameters)", "attributes NAMES", or "" where being there is enough.
NAMES = {
    "huggingface_hub:get_session": "()",
    "huggingface_hub.utils:parse_ratelimit_headers": "(headers)",
    "transformers:GenerationConfig._get_default_generation_params": "()",
    "transformers.utils.chat_template_utils:datetime": "",
    "transformers.integrations.gguf:gguf_tokenizer_mapping": "",
    "transformers.models.auto.modeling_auto:MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "",
}
