"""What this room uses of torch, transformers and peft beyond their documented interfaces.

Each name stands with the parameters that it must have, or with the attributes that its class
must set. `tests/test_compat.py` fails, by name, where an upgrade has moved one: before it changes
an answer. Nothing is imported here.
"""

# "module:name" -> "(parameters)", "attributes NAMES", or "" where being there is enough.
NAMES = {
    "torch:_C": "",
    "torch:Tensor._version": "",
    "torch.nn:Module": "attributes _buffers _parameters",
    "torch:ops.aten._scaled_dot_product_efficient_attention": "",
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu": "",
    "torch:ops.mkldnn._linear_pointwise": "",
    "torch:ops.mkldnn._reorder_linear_weight": "",
    "transformers:GenerationConfig._get_default_generation_params": "()",
    "transformers:GenerationMixin._get_logits_processor": "(self, generation_config,"
    " input_ids_seq_length, encoder_input_ids, prefix_allowed_tokens_fn, logits_processor, device,"
    " model_kwargs, negative_prompt_ids, negative_prompt_attention_mask)",
    "transformers:GenerationMixin._prepare_special_tokens": "(self, generation_config,"
    " kwargs_has_attention_mask, device, batch_size)",
    "transformers:PretrainedConfig._attn_implementation": "",
    "transformers:PreTrainedModel._can_set_attn_implementation": "()",
    "transformers:PreTrainedModel._get_dtype_plan": "(self, dtype)",
    "transformers.quantizers.auto:AUTO_QUANTIZATION_CONFIG_MAPPING": "",
}
