"""What this room uses of lm-eval and datasets beyond their documented interfaces: names with the
parameters or attributes that they must have. `tests/test_compat.py` fails, by name, where an
upgrade has moved one."""

# "module:name" -> "(parameters)", "attributes NAME", or "" where being there is enough.
NAMES = {
    "lm_eval.api.instance:Instance": "(request_type, doc, arguments, idx, metadata, resps,"
    " filtered_resps, task_name, doc_id, repeats)",
    "lm_eval.api.model:TemplateLM._loglikelihood_tokens": "(self, requests, **kwargs)",
    "lm_eval.api.model:TemplateLM.tok_encode": "(self, string, add_special_tokens, **kwargs)",
    "lm_eval.api.registry:get_model": "(model_name)",
    "lm_eval.api.registry:metric_registry": "",
    "lm_eval.api.task:Task": "attributes _instances",
    "lm_eval.api.task:ConfigurableTask": "attributes _filters _metric_fn_list",
    "lm_eval.api.task:ConfigurableTask.fewshot_docs": "(self)",
    "lm_eval.api.task:ConfigurableTask.process_results": "(self, doc, results)",
    "lm_eval.evaluator:evaluate": "",
    "lm_eval.models:MODEL_MAPPING": "",
    "lm_eval.tasks:TaskManager.task_index": "",
    "lm_eval.tasks._index:Entry": "",
    "lm_eval.tasks._index:Kind": "",
    "lm_eval.tasks._index:TaskIndex.build": "(paths, *, resolve_includes)",
    "lm_eval.tasks._yaml_loader:load_yaml": "(path, *, resolve_func, recursive, _seen)",
    "lm_eval.utils:env.from_string": "(source, globals, template_class)",
    "lm_eval.utils:handle_arg_string": "(arg)",
    "lm_eval.utils:handle_non_serializable": "(o)",
    "datasets.load:CachedDatasetModuleFactory": "",
    "datasets.naming:camelcase_to_snakecase": "(name)",
    "datasets.packaged_modules:_PACKAGED_DATASETS_MODULES": "",
    "datasets.packaged_modules.cache.cache:Cache": "",
    "datasets.arrow_dataset:Dataset": "attributes _fingerprint _indices",
    "evaluate:load": "",
    "huggingface_hub.file_download:repo_folder_name": "(*, repo_id, repo_type)",
}
