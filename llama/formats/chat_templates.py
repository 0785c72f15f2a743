"""Chat templates as other programs' files hold them: the two that the engine has, in Jinja."""

LLAMA2 = """\
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
{%- set system = '<<SYS>>\\n' + messages[0].content.strip() + '\\n<</SYS>>\\n\\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message.content.strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{ message.content.strip() + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
TEMPLATES = {"llama2": LLAMA2, "llama3": LLAMA3}


def template_kind(text: str) -> str:
    """Which of the templates that the engine has a chat template, as text, is: by what no other one has."""
    if "<|start_header_id|>" in text:
        return "llama3"
    return "llama2" if "[INST]" in text and "<<SYS>>" in text else "none"
